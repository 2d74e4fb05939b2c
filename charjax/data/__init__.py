"""Reads text files as ids and lays them out in batches on the devices."""
