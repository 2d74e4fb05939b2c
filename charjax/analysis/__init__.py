"""Scores, dynamic evaluation, and what hidden units follow in a text."""
