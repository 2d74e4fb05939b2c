"""Jitted training step, evaluation, and the host-side training loop."""
