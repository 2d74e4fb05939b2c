"""The jitted training step, evaluation, and the loop on the host."""
