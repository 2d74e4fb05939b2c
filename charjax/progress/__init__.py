"""Reports the progress of `fit` as a live bar, plain lines or a history."""
