"""Run folders on disk: model files, checkpoints and logs (layout.py lists their contents)."""
