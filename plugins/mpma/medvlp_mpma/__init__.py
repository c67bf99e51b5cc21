"""MPMA for medvlp: paired masking, memory-augmented cross-modal fusion, global and local alignment. See docs/mpma.md."""
