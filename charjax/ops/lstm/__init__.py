"""One LSTM layer over a batch of sequences: `lstm` in api.py, and the implementations it chooses from."""
