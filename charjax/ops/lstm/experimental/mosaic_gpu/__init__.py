"""Kernels for Hopper GPUs in Pallas for Mosaic GPU: an LSTM layer (layer.py), and a step of sampling."""
