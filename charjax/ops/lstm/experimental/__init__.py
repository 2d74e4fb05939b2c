"""Implementations that are chosen only by name: they have not run on their target device, or are not faster on it."""
