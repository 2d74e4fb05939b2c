"""Implementations that have been compiled for their target device but have not been run on it yet."""
