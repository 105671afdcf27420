"""Work folders in a bucket."""

from __future__ import annotations

from ..emulated_bucket import bucket, close_bucket  # noqa: F401  # fixtures
