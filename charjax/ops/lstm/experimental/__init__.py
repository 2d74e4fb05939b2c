"""Implementations that have not run on their device yet."""
