"""Decoders that have been compiled and run in interpret mode, but never on the device they are written for."""
