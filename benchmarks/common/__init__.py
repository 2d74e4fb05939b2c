"""What all benchmarks share: worker processes, peers measured in turn, results, tables, and the problem itself."""
