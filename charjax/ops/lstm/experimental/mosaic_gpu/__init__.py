"""Pallas kernels for Hopper GPUs, whose back end in JAX is called Mosaic GPU."""
