"""Converts models to and from other formats."""

from charjax.interop.torch import from_torch as from_torch, to_torch as to_torch
