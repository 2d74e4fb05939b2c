"""Progress of `fit`: live bar, plain lines, or a history."""
