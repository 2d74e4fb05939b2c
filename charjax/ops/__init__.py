"""Numerical operations, each behind one function that chooses among its implementations."""

from charjax.ops.lstm.api import lstm as lstm
