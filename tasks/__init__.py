"""Registrations of data with seqio, one file for each source."""
