"""Specs of the standard text encoders. Light."""

from __future__ import annotations

from medvlp_core.components import ComponentSpec

SPECS: tuple[type[ComponentSpec], ...] = ()
