"""What is shown of components and recipes: sentences, pages, the forward pass as code, a JSON Schema. Light."""

from medvlp_core.describe.code import forward_source

__all__ = ["forward_source"]
