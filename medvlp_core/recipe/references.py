"""``${path.in.document}`` and ``${env:NAME:-default}`` in the texts of a recipe. Light.

A reference that is the whole text takes the target with its type; inside a longer text the target is written in. ``$${`` is a
plain ``${``. There are no expressions: a number that depends on another one is computed by the spec that needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from medvlp_core.errors import Diagnostics, Position, did_you_mean
from medvlp_core.recipe.tree import Node, Scalar, scalar

_TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")


class _Unresolved(Exception):
    """A reference that cannot be resolved; the reason is in the report."""


def resolve_references(root: Node, *, environment: Mapping[str, str], diagnostics: Diagnostics) -> Node:
    """Replace every reference in the tree. One that cannot be resolved is MV006, and its key is left out."""
    resolver = _Resolver(root, environment, diagnostics)
    try:
        return resolver.node(root, "")
    except _Unresolved:
        return Node(None, root.position, root.key_position)


def escape_references(text: str) -> str:
    """Write a text so that reading it as part of a recipe gives the text itself.

    Example:
        >>> escape_references("costs ${price}")
        'costs $${price}'
    """
    return text.replace("${", "$${")


@attrs.define
class _Resolver:
    root: Node
    environment: Mapping[str, str]
    diagnostics: Diagnostics
    done: dict[str, Node | None] = attrs.field(factory=dict)
    open: list[str] = attrs.field(factory=list)

    def node(self, node: Node, path: str) -> Node:
        """The node at ``path`` with all references below it resolved.

        Raises:
            _Unresolved: it is a text with a reference that cannot be resolved.
        """
        if path not in self.done:
            self.open.append(path)
            try:
                self.done[path] = self._resolve(node, path)
            except _Unresolved:
                self.done[path] = None
            self.open.pop()
        found = self.done[path]
        if found is None:
            raise _Unresolved
        return found

    def _resolve(self, node: Node, path: str) -> Node:
        if isinstance(node.value, dict):
            pairs = {key: self._child(child, _join(path, key)) for key, child in node.value.items()}
            return attrs.evolve(node, value={key: child for key, child in pairs.items() if child is not None})
        if isinstance(node.value, list):
            items = [self._child(child, _join(path, str(index))) for index, child in enumerate(node.value)]
            return attrs.evolve(node, value=[child for child in items if child is not None])
        if isinstance(node.value, str) and "${" in node.value:
            return attrs.evolve(node, value=self._text(node.value, node.position))
        return node

    def _child(self, node: Node, path: str) -> Node | None:
        try:
            return self.node(node, path)
        except _Unresolved:
            return None

    def _text(self, text: str, at: Position) -> dict[str, Node] | list[Node] | Scalar:
        whole = _TOKEN.fullmatch(text)
        if whole and whole.group(1) is not None:
            return self._target(whole.group(1), at)
        return _TOKEN.sub(lambda match: self._part(match, at), text)

    def _part(self, match: re.Match[str], at: Position) -> str:
        if match.group() == "$${":
            return "${"
        if match.group(1) is None:
            hint = "write `${path.in.recipe}`, or `$${` for a plain `${`"
            self.diagnostics.add("MV006", f"a reference is not closed in {match.string!r}", at=at, hint=hint)
            raise _Unresolved
        reference = match.group(1)
        if reference.startswith("env:"):
            return self._variable(reference.removeprefix("env:"), at)
        value = self._target(reference, at)
        if isinstance(value, (dict, list)):
            kind = "mapping" if isinstance(value, dict) else "list"
            text = f"${{{reference}}} is a {kind} and cannot stand inside a text"
            self.diagnostics.add("MV006", text, at=at, hint="a reference to a block must be the whole value")
            raise _Unresolved
        if value is None or isinstance(value, bool):
            return "null" if value is None else str(value).lower()
        return str(value)

    def _target(self, reference: str, at: Position) -> dict[str, Node] | list[Node] | Scalar:
        if reference.startswith("env:"):
            return scalar(self._variable(reference.removeprefix("env:"), at))
        node, path = self.root, ""
        for part in reference.strip().split("."):
            child = node.child(part)
            if child is None:
                hint = missing_hint(self.root, reference.strip())
                self.diagnostics.add("MV006", f"${{{reference}}} does not exist", at=at, hint=hint)
                raise _Unresolved
            path = _join(path, part)
            is_last = path == reference.strip()
            # A block on the way may itself be a reference, so it is resolved before its keys are looked up.
            node = self._enter(child, path, reference, at) if is_last or isinstance(child.value, str) else child
        return node.value

    def _enter(self, node: Node, path: str, reference: str, at: Position) -> Node:
        if path in self.open:
            circle = " -> ".join([*self.open[self.open.index(path) :], path])
            self.diagnostics.add("MV006", f"${{{reference}}} refers to itself: {circle}", at=at, hint="write the value once")
            raise _Unresolved
        return self.node(node, path)

    def _variable(self, text: str, at: Position) -> str:
        name, has_default, default = text.partition(":-")
        if name in self.environment:
            return self.environment[name]
        if has_default:
            return default
        hint = f"set {name}, or write ${{env:{name}:-default}}"
        self.diagnostics.add("MV006", f"the environment variable {name!r} is not set", at=at, hint=hint)
        raise _Unresolved


def missing_hint(root: Node, path: str) -> str:
    """What stands where ``path`` leaves the tree.

    Example:
        >>> from medvlp_core.recipe.tree import parse_yaml
        >>> missing_hint(parse_yaml("a: {bee: 1, see: 2}", file="", diagnostics=Diagnostics()), "a.be")
        "did you mean 'bee'? other keys of a: see"
    """
    node, known = root, ""
    for part in path.split("."):
        child = node.child(part)
        if child is None:
            break
        node, known = child, _join(known, part)
    if isinstance(node.value, dict):
        return did_you_mean(part, node.value, what=f"keys of {known or 'the recipe'}")
    return f"{known} has no keys below it"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
