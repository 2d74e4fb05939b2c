"""Text files to ids, and ids to batches on the devices."""
