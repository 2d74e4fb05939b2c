"""Text scoring, dynamic evaluation and hidden-unit activations."""
