"""The command line: arguments, start-up, output, and one module per command."""
