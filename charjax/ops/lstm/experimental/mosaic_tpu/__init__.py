"""The two time loops as Pallas kernels for TPUs."""
