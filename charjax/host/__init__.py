"""The machine underneath: cores, memory, signals."""
