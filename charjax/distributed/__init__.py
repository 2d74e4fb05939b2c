"""The device mesh and multi-process training."""
