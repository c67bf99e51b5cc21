"""The training loop against one that is written by hand over the same modules, in turn and after a check."""
