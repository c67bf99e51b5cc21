"""The standard evaluators: held-out checks beside their trivial baselines, and pictures."""
