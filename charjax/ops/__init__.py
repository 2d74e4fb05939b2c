"""Numerical operations, each behind a single function that chooses among its implementations."""

from charjax.ops.lstm.api import lstm as lstm
