"""The device mesh, and processes that train together."""
