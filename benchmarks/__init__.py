"""Benchmarks: each is one command, prints a table, and writes dated JSON under benchmarks/results."""
