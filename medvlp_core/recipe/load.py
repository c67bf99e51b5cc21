"""Recipes: a YAML file or preset with everything that it extends, overrides applied, references resolved. Light.

The order is fixed: ``extends`` first, then ``--set``/``--use``/``--unset`` in the order given, then ``${...}`` references. All
problems go into a report; what could be read is returned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from medvlp_core.errors import Diagnostics, Position, did_you_mean, nearest
from medvlp_core.recipe.references import escape_references, missing_hint, resolve_references
from medvlp_core.recipe.tree import Node, Scalar, dump_yaml, parse_yaml

__all__ = [
    "Node",
    "Override",
    "Scalar",
    "dump_yaml",
    "escape_references",
    "is_path",
    "load_recipe",
    "merge",
    "parse_override",
    "parse_overrides",
    "parse_yaml",
]


OverrideKind = Literal["set", "use", "unset"]


@attrs.frozen
class Override:
    """One ``--set``, ``--use`` or ``--unset`` of the command line. ``text`` is how it was typed; messages point at it."""

    kind: OverrideKind
    path: str
    value: str | None
    text: str


#: A change as somebody gives it: what ``--set`` takes, the option with its argument, or an override that was read already.
Change = str | tuple[OverrideKind, str] | Override


def load_recipe(
    source: str | Path,
    *,
    presets: Mapping[str, Path],
    overrides: Sequence[Override] = (),
    environment: Mapping[str, str] | None = None,
    diagnostics: Diagnostics,
    install_hint: Callable[[str], str | None] | None = None,
) -> Node:
    """Read a recipe from a file, or from a preset such as ``mpma:small``.

    ``install_hint`` says what to do about a namespace whose presets are missing: the method of the host that brought the presets.

    If a file cannot be read, or something that it extends cannot, the node's value is None: what its blocks would be is unknown,
    so complaints about missing ones would only hide the reason.
    """
    root = _Loader(presets, diagnostics, install_hint).load(str(source))
    if root is None:
        return Node(None, Position(str(source)))
    for override in overrides:
        root = _apply(override, root, diagnostics)
    return resolve_references(root, environment=os.environ if environment is None else environment, diagnostics=diagnostics)


# ------------------------------------------------------------------------------------------------------------------ extends


@attrs.define
class _Loader:
    presets: Mapping[str, Path]
    diagnostics: Diagnostics
    install_hint: Callable[[str], str | None] | None
    chain: list[str] = attrs.field(factory=list)

    def load(self, source: str) -> Node | None:
        """The source given by the user."""
        if source in self.presets:
            return self.file(self.presets[source], source)
        if _is_preset_name(source) and not Path(source).exists():
            self.diagnostics.add("MV005", f"there is no preset {source!r}", hint=self.preset_hint(source))
            return None
        return self.file(Path(source), source)

    def file(self, path: Path, shown: str) -> Node | None:
        """One file with everything that it extends; ``shown`` is its name in messages."""
        text = self.read(path, shown)
        node = parse_yaml(text, file=shown, diagnostics=self.diagnostics) if text is not None else None
        if node is None:
            return None
        if not isinstance(node.value, dict):
            hint = "start with `medvlp: 1` and continue with `model:`"
            kind = "a list" if isinstance(node.value, list) else f"the value {node.value!r}"
            self.diagnostics.add("MV002", f"a recipe is a mapping of blocks, found {kind}", at=node.position, hint=hint)
            return None
        own = attrs.evolve(node, value={key: child for key, child in node.value.items() if key != "extends"})
        extends = node.value.get("extends")
        if extends is None:
            return own
        self.chain.append(str(path.resolve()))
        bases = [self.base(target, path, shown) for target in self.targets(extends)]
        self.chain.pop()
        merged: Node | None = None
        for layer in (*bases, own):
            if layer is None:
                return None
            merged = layer if merged is None else merge(merged, layer)
        return merged

    def targets(self, extends: Node) -> list[Node]:
        if extends.value is None:
            return []
        found = extends.value if isinstance(extends.value, list) else [extends]
        for target in found:
            if not isinstance(target.value, str):
                hint = "write `extends: mpma:base`, or a list of such names"
                self.diagnostics.add("MV005", "`extends` takes names of presets or files", at=target.position, hint=hint)
        return found

    def base(self, target: Node, path: Path, shown: str) -> Node | None:
        """What one entry of ``extends`` names."""
        name = target.value
        if not isinstance(name, str):
            return None
        if name in self.presets:
            found, name_shown = self.presets[name], name
        elif _is_preset_name(name):
            self.diagnostics.add("MV005", f"there is no preset {name!r}", at=target.position, hint=self.preset_hint(name))
            return None
        else:
            found = path.parent / name
            folder = path.parent if shown in self.presets else Path(shown).parent
            name_shown = os.path.normpath(folder / name)
        if str(found.resolve()) in [*self.chain, str(path.resolve())]:
            text = "a recipe cannot extend itself" if name_shown == shown else f"{name!r} extends {shown!r}, which extends it"
            self.diagnostics.add("MV005", f"`extends` goes in a circle: {text}", at=target.position, hint="leave one of them out")
            return None
        if not found.is_file():
            text = f"`extends` names {name!r}, and there is no file {name_shown}"
            self.diagnostics.add(
                "MV005", text, at=target.position, hint=self.file_hint(found, "a path in `extends` is relative to its file")
            )
            return None
        return self.file(found, name_shown)

    def read(self, path: Path, shown: str) -> str | None:
        at = Position(shown)
        try:
            return path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            self.diagnostics.add(
                "MV001", "there is no such file", at=at, hint=self.file_hint(path, "give a recipe's file, or a preset")
            )
        except IsADirectoryError:
            self.diagnostics.add(
                "MV001",
                "this is a folder, not a file",
                at=at,
                hint=self.file_hint(path / "recipe.yaml", "give a recipe's file, or a preset"),
            )
        except UnicodeDecodeError as error:
            self.diagnostics.add("MV001", f"the file is not UTF-8 text (byte {error.start})", at=at, hint="save it as UTF-8")
        except (OSError, ValueError) as error:
            self.diagnostics.add("MV001", f"the file cannot be read: {getattr(error, 'strerror', None) or error}", at=at)
        return None

    def preset_hint(self, name: str) -> str:
        space = name.partition(":")[0]
        is_loaded = any(preset.partition(":")[0] == space for preset in self.presets)
        hint = None if is_loaded or self.install_hint is None else self.install_hint(space)
        return hint or did_you_mean(name, self.presets, what="presets")

    def file_hint(self, path: Path, otherwise: str) -> str:
        try:
            files = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml") and entry.is_file()]
        except OSError:
            return f"there is no folder {path.parent.name!r}; presets: {', '.join(sorted(self.presets))}"
        near = nearest(path.name, files)
        presets = ", ".join(sorted(self.presets))
        return f"did you mean '{near}'?" if near else f"{otherwise}; presets: {presets}"


def _is_preset_name(name: str) -> bool:
    space, colon, rest = name.partition(":")
    return bool(colon) and space.replace("_", "").isalnum() and not set(rest) & {"/", "\\"} and "." not in rest


def merge(base: Node, top: Node) -> Node:
    """``top`` laid over ``base``: mappings merge, lists and scalars replace.

    ``null`` over an inherited mapping removes it (over a scalar it is a value). Where both name a component with ``use`` and the
    names differ, nothing of the old block stays: its parameters belong to another component.
    """
    if not isinstance(base.value, dict) or not isinstance(top.value, dict):
        return top
    old, new = base.value.get("use"), top.value.get("use")
    if old is not None and new is not None and old.value != new.value:
        return top
    merged = dict(base.value)
    for key, child in top.value.items():
        inherited = merged.get(key)
        if inherited is not None and inherited.is_mapping and child.value is None:
            del merged[key]
        else:
            merged[key] = child if inherited is None else merge(inherited, child)
    return attrs.evolve(top, value=merged)


# ---------------------------------------------------------------------------------------------------------------- overrides


def is_path(text: str) -> bool:
    """Whether ``text`` has the form of a dotted path.

    Example:
        >>> [is_path(text) for text in ("train.steps", "train.", "")]
        [True, False, False]
    """
    return all(part and not part.isspace() for part in text.split("."))


def parse_override(kind: OverrideKind, text: str, diagnostics: Diagnostics) -> Override | None:
    """Read the argument of ``--set``, ``--use`` or ``--unset``; None (and MV007) if it has not the right form.

    Example:
        >>> parse_override("set", "train.steps=10", Diagnostics())
        Override(kind='set', path='train.steps', value='10', text='--set train.steps=10')
    """
    typed = f"--{kind} {text}"
    path, has_value, value = (part.strip() for part in text.partition("="))
    forms = {"set": "--set PATH=VALUE", "use": "--use PATH=COMPONENT", "unset": "--unset PATH"}
    if not is_path(path) or bool(has_value) == (kind == "unset") or (has_value and not value):
        hint = (
            f"write {forms[kind]}, e.g. "
            + {
                "set": "--set train.steps=100",
                "use": "--use model.fusion=standard.cross_attention",
                "unset": "--unset model.alignments.gla",
            }[kind]
        )
        diagnostics.add("MV007", "this override has not the right form", at=Position(typed), hint=hint)
        return None
    return Override(kind, path, value if has_value else None, typed)


def parse_overrides(changes: Iterable[Change], diagnostics: Diagnostics) -> list[Override]:
    """The overrides that have the right form, in the order given; the others go to ``diagnostics`` (MV007).

    A text is what ``--set`` takes, and a single one is a list of one; a pair names the option and its argument.

    Example:
        >>> [one.text for one in parse_overrides(["train.steps=10", ("unset", "init_from")], Diagnostics())]
        ['--set train.steps=10', '--unset init_from']
    """
    found: list[Override] = []
    for one in [changes] if isinstance(changes, str) else changes:
        if isinstance(one, Override):
            found.append(one)
            continue
        typed: tuple[OverrideKind, str] = ("set", one) if isinstance(one, str) else one
        parsed = parse_override(*typed, diagnostics)
        found += [parsed] if parsed is not None else []
    return found


def _apply(override: Override, root: Node, diagnostics: Diagnostics) -> Node:
    at = Position(override.text)
    parts = override.path.split(".")
    if override.kind == "unset":
        if root.get(override.path) is None:
            text = f"there is no {override.path} to remove"
            diagnostics.add("MV007", text, at=at, hint=missing_hint(root, override.path))
            return root
        return _replace(root, parts, None, at, diagnostics)
    value = _override_value(override, at, diagnostics)
    if value is None:
        return root
    if override.kind == "set" and parts[-1] == "use" and len(parts) > 1:
        parts, value = parts[:-1], Node({"use": value}, at, at)
        override = attrs.evolve(override, kind="use")
    if override.kind == "use":
        present = root.get(".".join([*parts, "use"]))
        if present is not None and value.get("use").value == present.value:  # type: ignore[union-attr]
            return root
    target = root.get(".".join(parts))
    removes = value.value is None and target is not None and target.is_mapping
    return _replace(root, parts, None if removes else value, at, diagnostics)


def _override_value(override: Override, at: Position, diagnostics: Diagnostics) -> Node | None:
    text = override.value or ""
    if override.kind == "use":
        return Node({"use": Node(text, at, at)}, at, at)
    inner = Diagnostics()
    node = parse_yaml(text, file=override.text, diagnostics=inner)
    for problem in inner:
        diagnostics.add("MV007", f"the value {text!r}: {problem.text}", at=at, hint=problem.hint)
    return _moved(node, at) if node is not None and not inner.has_errors else None


def _moved(node: Node, at: Position) -> Node:
    """The same tree, standing at ``at``: columns inside an override help nobody."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _moved(child, at) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child, at) for child in value]
    return Node(value, at, at)


def _replace(node: Node, parts: Sequence[str], value: Node | None, at: Position, diagnostics: Diagnostics, above: str = "") -> Node:
    """``node`` with another value (None = none) at the path ``parts``; mappings on the way are made."""
    here = f"{above}.{parts[0]}" if above else parts[0]
    if not isinstance(node.value, dict):
        kind = "a list" if isinstance(node.value, list) else f"the value {node.value!r}"
        diagnostics.add("MV007", f"{above} is {kind}, so it has no {parts[0]!r}", at=at, hint=f"set {above} as a whole")
        return node
    children = dict(node.value)
    if len(parts) > 1:
        child = children.get(parts[0])
        if child is None or child.value is None:
            child = Node({}, at, at)
        children[parts[0]] = _replace(child, parts[1:], value, at, diagnostics, here)
    elif value is None:
        children.pop(parts[0], None)
    else:
        children[parts[0]] = value
    return attrs.evolve(node, value=children)
