"""Scores of a text, dynamic evaluation, and the activations of hidden units."""
