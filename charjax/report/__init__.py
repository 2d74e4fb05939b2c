"""What a run tells of itself: metrics.jsonl, samples.txt, and progress on the terminal."""
