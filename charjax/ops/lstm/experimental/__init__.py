"""Implementations that have been compiled for their device but have not run on one yet."""
