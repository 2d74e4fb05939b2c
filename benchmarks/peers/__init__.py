"""What the benchmarks compare; every module runs in a worker process (`benchmarks.common.serve`)."""
