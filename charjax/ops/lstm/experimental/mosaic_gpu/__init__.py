"""Kernels for Hopper GPUs in Pallas for Mosaic GPU: an LSTM layer (layer.py) and a sampling step (sample_step.py)."""
