"""The time loops of `recompute` as TPU kernels in Pallas."""
