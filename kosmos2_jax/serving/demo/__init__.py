"""The demo: a page in the browser to try a model out, see `kosmos2_jax.serving.demo.page`."""
