"""``medvlp docs NAMESPACE``: the components of a bundle as a page in Markdown, for its own documentation."""

from __future__ import annotations

import argparse

from medvlp_core.cli.completion_words import completes
from medvlp_core.errors import Problem, SpecError, did_you_mean


def configure(parser: argparse.ArgumentParser) -> None:
    """Which bundle."""
    completes(
        parser.add_argument("namespace", metavar="NAMESPACE", help="a bundle such as mpma; `medvlp list` shows all"), "bundle"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the page.

    Raises:
        SpecError: no component of that namespace is installed (MV101).
    """
    from medvlp_core.describe.pages import components_text
    from medvlp_core.plugins.host import load_plugins

    host = load_plugins()
    space = arguments.namespace
    names = [name for name in host.components if name.partition(".")[0] == space]
    if not names:
        known = {name.partition(".")[0] for name in host.components}
        hint = host.install_hint(space) or did_you_mean(space, known, what="bundles with components")
        raise SpecError(Problem(code="MV101", text=f"no component of the namespace {space!r} is installed", hint=hint))
    print(components_text(host.components, names), end="")
    return 0
