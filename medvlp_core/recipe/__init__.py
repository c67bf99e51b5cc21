"""YAML text to a tree in which every value knows its place. Light."""

from __future__ import annotations

from medvlp_core.recipe.load import Override, parse_override

__all__ = ["Override", "parse_override"]
