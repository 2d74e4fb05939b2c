"""The machine: CPU cores, memory, signals."""
