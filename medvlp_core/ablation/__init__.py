"""Ablations: a recipe trained in every combination of some values, over some seeds, with one table at the end."""
