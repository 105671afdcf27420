"""Experiments: files with `get_config()`, installed as `kosmos2_jax.configs`."""
