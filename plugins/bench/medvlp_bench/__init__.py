"""Measuring medvlp on this machine, and telling beforehand what a run will cost: `medvlp bench` and `medvlp estimate`."""
