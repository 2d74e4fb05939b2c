"""One accelerator, measured by one command: `python -m benchmarks.gpu`."""
