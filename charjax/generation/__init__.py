"""Sampling, beam search, and sessions that carry over the hidden state."""
