"""What `fit` shows while it trains."""
