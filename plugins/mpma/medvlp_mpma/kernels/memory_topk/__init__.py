"""Attention over the K best memory slots of each query."""
