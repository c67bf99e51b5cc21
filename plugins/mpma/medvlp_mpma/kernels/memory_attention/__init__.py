"""Attention over per-sample keys and a memory that all samples share."""
