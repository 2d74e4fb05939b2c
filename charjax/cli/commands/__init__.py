"""The commands, one module each with a function `run`; imported when they are run."""
