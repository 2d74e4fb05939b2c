"""Run folders on disk: model files, checkpoints and logs (layout.py lists what is in one)."""
