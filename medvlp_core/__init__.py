"""medvlp: modular medical vision-language pre-training. Importing this package does not import torch."""

__version__ = "0.1.0"
