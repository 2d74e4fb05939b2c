"""What a run leaves on disk: model, checkpoints, logs."""
