"""What may stand where the cursor is: the words that a shell offers on Tab. Light. ``medvlp completion`` prints the scripts.

Where nothing is offered, the shell offers file names.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from medvlp_core.errors import Diagnostics
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import Node, load_recipe
from medvlp_core.spec.blocks import InitSpec, InputSpec, TrainSpec
from medvlp_core.spec.component import params_of
from medvlp_core.spec.roles import Role

#: What an argument stands for: a recipe; a component or preset; a bundle; the three overrides.
Kind = Literal["recipe", "name", "bundle", "use", "set", "unset"]

_BLOCKS = {"inputs": InputSpec, "init_from": InitSpec, "train": TrainSpec}


def completes(action: argparse.Action, kind: Kind) -> None:
    """Say what an argument of a command stands for, so that a shell can offer it; choices of argparse are offered anyhow."""
    vars(action)["completes"] = kind


def split_line(line: str) -> list[str]:
    """The words of a command line up to the cursor, without ``medvlp`` and what stands before it; the last is being typed.

    Example:
        >>> split_line("OMP_NUM_THREADS=1 medvlp check mpma:s")
        ['check', 'mpma:s']
    """
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    if not words or line[-1].isspace():
        words.append("")
    while "=" in words[0] and len(words) > 1:
        words = words[1:]
    return words[1:]


def offered(
    words: Sequence[str], commands: Callable[[], Iterable[str]], parser: Callable[[str], argparse.ArgumentParser]
) -> list[str]:
    """Whole words that may stand at the end of a command line, instead of the beginning that is typed there."""
    from medvlp_core.plugins.host import load_plugins

    if len(words) < 2:
        found = sorted([*commands(), "--help", "--version"])
        return [word for word in found if word.startswith("".join(words))]
    if words[0] not in commands():
        return []
    line = _Line.read(parser(words[0]), words[1:])
    return [word for word in line.offered(load_plugins()) if word.startswith(words[-1])]


@attrs.frozen(kw_only=True)
class _Line:
    """The words behind a command: what is being typed (``action``, behind ``start``), and the recipe that was named before."""

    typed: str
    start: str
    options: tuple[str, ...]
    action: argparse.Action | None
    recipe: str | None

    @classmethod
    def read(cls, parser: argparse.ArgumentParser, words: Sequence[str]) -> _Line:
        """Walk over the words as argparse would."""
        *before, typed = words
        positions = [action for action in parser._actions if not action.option_strings]
        option_of_value: argparse.Action | None = None  # the option whose value comes next
        recipe = None
        for index, word in enumerate(before):
            if option_of_value is not None:
                option_of_value = None
            elif word.startswith("-"):
                action = parser._option_string_actions.get(word.partition("=")[0])
                takes_value = action is not None and action.nargs != 0 and "=" not in word
                option_of_value = action if takes_value else None
            elif positions:
                action = positions.pop(0)
                if isinstance(action, argparse._SubParsersAction):
                    return cls.read(action.choices[word], words[index + 1 :])
                recipe = word if vars(action).get("completes") == "recipe" else recipe
        options = tuple(parser._option_string_actions)
        option, sign, value = typed.partition("=")
        if option_of_value is None and sign and option in options:
            action = parser._option_string_actions[option]
            return cls(typed=value, start=f"{option}=", options=options, action=action, recipe=recipe)
        action = option_of_value or (positions[0] if positions else None)
        return cls(typed=typed, start="", options=options, action=action, recipe=recipe)

    def offered(self, host: PluginHost) -> list[str]:
        """Every word that may stand here, also those that do not begin with what is typed."""
        is_value = self.start or (self.action is not None and self.action.option_strings)
        if self.typed.startswith("-") and not is_value:
            return sorted(self.options)
        if self.action is None:
            return []
        if self.action.choices is not None:
            return [f"{self.start}{word}" for word in self.action.choices]
        kind: Kind | None = vars(self.action).get("completes")
        return [f"{self.start}{word}" for word in self._words(kind, host)] if kind else []

    def _words(self, kind: Kind, host: PluginHost) -> list[str]:
        if kind == "recipe":
            return [*sorted(host.presets), *_yaml_files(self.typed)]
        if kind == "name":
            return [*host.components, *sorted(host.presets)]
        if kind == "bundle":
            return [plugin.namespace for plugin in host.plugins]
        recipe = load_recipe(self.recipe, presets=host.presets, diagnostics=Diagnostics()) if self.recipe else None
        if kind == "use":
            return _uses(self.typed, recipe, host)
        return list(_values(recipe, host)) if kind == "set" else list(_paths(recipe))


def _yaml_files(typed: str) -> list[str]:
    """YAML files and folders whose path begins so."""
    folder = typed.rpartition("/")[0] + "/" if "/" in typed else ""
    try:
        found = sorted(Path(folder or ".").iterdir())
    except OSError:
        return []
    shown = [path for path in found if not path.name.startswith(".")]
    return [
        f"{folder}{path.name}{'/' if path.is_dir() else ''}" for path in shown if path.is_dir() or path.suffix in (".yaml", ".yml")
    ]


def _slots(role: Role, recipe: Node | None) -> list[str]:
    """The slots of a role: of several, those that the recipe has."""
    if not role.info.is_many:
        return [role.info.slot]
    block = recipe.get(role.info.base) if recipe is not None else None
    return [f"{role.info.base}.{name}" for name in block.value] if block is not None and isinstance(block.value, dict) else []


def _uses(typed: str, recipe: Node | None, host: PluginHost) -> list[str]:
    """``SLOT=``, and behind it the components of the slot's role."""
    slot, sign, _ = typed.partition("=")
    if sign:
        roles = [
            role for role in Role if slot == role.info.slot or (role.info.is_many and slot.rpartition(".")[0] == role.info.base)
        ]
        return [f"{slot}={name}" for role in roles for name in host.components.offered(role)]
    slots = [f"{slot}=" for role in Role for slot in _slots(role, recipe)]
    return slots + [f"{role.info.base}." for role in Role if role.info.is_many]


def _values(recipe: Node | None, host: PluginHost) -> Iterable[str]:
    """``PATH=`` of every parameter of the core's blocks, and of the components that the recipe has."""
    for block, kind in _BLOCKS.items():
        yield from (f"{block}.{param.name}=" for param in params_of(kind))
    for slot in (slot for role in Role for slot in _slots(role, recipe)):
        use = recipe.get(f"{slot}.use") if recipe is not None else None
        name = str(use.value) if use is not None else ""
        if name in host.components:
            yield from (f"{slot}.{param.name}=" for param in params_of(host.components[name]))


def _paths(node: Node | None, above: str = "") -> Iterable[str]:
    """Every path of a recipe."""
    if node is None or not isinstance(node.value, dict):
        return
    for name, child in node.value.items():
        yield f"{above}{name}"
        yield from _paths(child, f"{above}{name}.")
