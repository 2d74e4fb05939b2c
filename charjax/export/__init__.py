"""Exports trained models to files for use in other programs."""

from charjax.export.html import write_html as write_html
from charjax.export.onnx import write_onnx as write_onnx
from charjax.export.stablehlo import write_stablehlo as write_stablehlo
from charjax.export.torch import write_torch as write_torch
