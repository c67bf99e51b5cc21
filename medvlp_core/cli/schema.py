"""``medvlp schema``: JSON Schema of recipes, for editors with YAML support."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medvlp_core.errors import Problem, SpecError


def configure(parser: argparse.ArgumentParser) -> None:
    """Where to write."""
    parser.add_argument("--out", metavar="FILE", type=Path, help="write to a file instead of stdout")
    parser.epilog = "In an editor: `# yaml-language-server: $schema=FILE` as the first line of a recipe."


def run(arguments: argparse.Namespace) -> int:
    """Write the schema of everything that is installed.

    Raises:
        SpecError: the file cannot be written (MV508).
    """
    from medvlp_core.describe.json_schema import json_schema
    from medvlp_core.plugins.host import load_plugins

    host = load_plugins()
    text = json.dumps(json_schema(host.components, presets=host.presets), indent=1, ensure_ascii=False)
    if arguments.out is None:
        print(text)
        return 0
    try:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        problem = Problem(code="MV508", text=f"{arguments.out} cannot be written: {error.strerror}")
        raise SpecError(problem) from error
    return 0
