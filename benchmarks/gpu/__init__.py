"""Everything worth knowing of one accelerator in one command: `python -m benchmarks.gpu`."""
