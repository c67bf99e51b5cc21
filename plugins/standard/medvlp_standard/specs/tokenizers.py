"""Specs of the standard tokenizers. Light."""

from __future__ import annotations

from medvlp_core.components import ComponentSpec

SPECS: tuple[type[ComponentSpec], ...] = ()
