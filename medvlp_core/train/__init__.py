"""The training run: one loop, its events, checkpoints, and the run folder around them."""
