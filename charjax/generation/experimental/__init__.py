"""Decoders that were compiled and tested in an interpreter, but never ran on their device."""
