"""Sampling, beam search, and sessions that carry the hidden state."""
