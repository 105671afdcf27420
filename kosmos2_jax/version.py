"""The version, a constant: reading package metadata would slow `kosmos2 --help`."""

__version__ = "0.1.0"
