"""The standard alignments, one file for each method; ``shared`` holds projections, pooling and word units."""
