"""The kit's own bundle ``kit``: the smallest real component of every role, to put a tested part into a whole model."""
