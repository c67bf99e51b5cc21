"""Finds plug-ins and keeps a broken one from harming the others. Light."""

from __future__ import annotations

from medvlp_core.plugins.host import PluginHost, load_plugins

__all__ = ["PluginHost", "load_plugins"]
