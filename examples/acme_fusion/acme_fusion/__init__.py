"""A fusion for medvlp: ``acme_fusion.gated_attention``."""
