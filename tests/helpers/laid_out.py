"""Distributions laid out in a folder as pip leaves them, for tests that need a bundle to be installed."""

from __future__ import annotations

from pathlib import Path

from broken_packages import MODULES, PLUGIN, SPECS, changed

GATE = "FusedFeatures(fused_text_tokens=text_tokens)"


def lay_out(folder: Path, space: str, *, returns: str = GATE, plugin: str = PLUGIN) -> None:
    """A bundle ``space`` with the fusion ``space.gate``, whose forward gives ``returns``."""
    texts = {
        f"{space}/__init__.py": "",
        f"{space}/plugin.py": plugin,
        f"{space}/specs.py": SPECS,
        f"{space}/modules.py": changed(MODULES, GATE, returns),
        f"{space}-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: {space}\nVersion: 1.2\n",
        f"{space}-1.2.dist-info/entry_points.txt": "[medvlp.plugins]\n{space} = {space}.plugin\n",
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{space}", space), encoding="utf-8")
