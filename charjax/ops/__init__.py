"""Numerical operations, each behind one function that picks among its implementations."""

from charjax.ops.lstm.api import lstm as lstm
