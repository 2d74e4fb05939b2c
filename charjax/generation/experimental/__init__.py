"""Decoders that have been compiled and run in interpret mode, but never run on their device."""
