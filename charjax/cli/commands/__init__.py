"""One module per command, each with a `run` function; imported only when that command is run."""
