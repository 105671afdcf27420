"""`python -m kosmos2_jax` is `kosmos2`."""

import sys

from kosmos2_jax.cli import main

sys.exit(main())
