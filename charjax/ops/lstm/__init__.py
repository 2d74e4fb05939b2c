"""One LSTM layer over one sequence: `lstm` in api.py, and the implementations it picks from."""
