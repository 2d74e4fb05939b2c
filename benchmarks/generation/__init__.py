"""Generation on a processor: charjax beside PyTorch and flax, and beside what reading the weights allows."""
