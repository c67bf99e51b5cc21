"""medvlp's standard components. The only bundle that imports timm or transformers."""
