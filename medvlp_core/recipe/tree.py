"""YAML text to a tree with source marks, and plain data to YAML text. Light: PyYAML's scanner, none of its types.

PyYAML reads YAML 1.1 (``1e-4`` is a string, ``on`` is true, ``010`` is eight) and lets a second key win silently. Here only its
scanner and parser are used; scalars follow the YAML 1.2 core schema, and everything that could surprise is an error with a place.
Where libyaml is installed it scans most texts, ten times as fast; what it would read or place otherwise than PyYAML's own scanner,
and whatever it refuses, PyYAML's own scanner reads. So trees, places and messages are the same everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import attrs
import yaml

from medvlp_core.errors import Diagnostics, Position

Scalar: TypeAlias = str | int | float | bool | None

#: Aliases may repeat a block; a text that grows beyond this is a mistake or an attack.
MAX_NODES = 100_000
MAX_DEPTH = 60

_INT = re.compile(r"[-+]?[0-9]{1,100}$|0o[0-7]{1,100}$|0x[0-9a-fA-F]{1,100}$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
#: What libyaml reads otherwise than PyYAML's own scanner: tabs, unusual line ends, directives, ``?`` within braces, tags, ``|#``.
_READ_OTHERWISE = re.compile("[\t\r\x85\u2028\u2029\ufeff?!]|^%|[|>][-+0-9]*#", re.MULTILINE)
_LIBYAML: Any = getattr(yaml, "CSafeLoader", None)
_CORE_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_SYNTAX_HINTS = {
    "mapping values are not allowed": "check the indentation; a text that contains ': ' needs quotes",
    "'\\t'": "indent with spaces, not with tabs",
    "found unexpected end of stream": "a quote or bracket is not closed",
    "expected '<document start>'": "check the indentation: keys of one block start in one column",
    "expected <block end>": "check the indentation: keys of one block start in one column",
    "could not find expected ':'": "a key needs ': ' behind it",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "found undefined alias": "write the block with its anchor (&name) before the alias (*name)",
}


@attrs.frozen(eq=False)
class Node:
    """A value of a recipe and where it stands.

    Example:
        >>> node = parse_yaml("model: {fusion: {heads: 12}}", file="a.yaml", diagnostics=Diagnostics())
        >>> node.get("model.fusion.heads").value, str(node.get("model.fusion").key_position)
        (12, 'a.yaml:1:9')
    """

    value: dict[str, Node] | list[Node] | Scalar
    position: Position
    key_position: Position | None = None

    @property
    def is_mapping(self) -> bool:
        """Whether the node is a block of keys."""
        return isinstance(self.value, dict)

    def plain(self) -> Any:
        """The value as nested dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def get(self, path: str) -> Node | None:
        """The node at a dotted path; parts of a list are counted from 0. None if there is nothing."""
        node: Node | None = self
        for part in path.split("."):
            if node is None:
                return None
            node = node.child(part)
        return node

    def child(self, part: str) -> Node | None:
        """The node under one key, or at one index of a list."""
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, list) and part.isascii() and part.isdigit() and int(part) < len(self.value):
            return self.value[int(part)]
        return None


def scalar(text: str) -> Scalar:
    """Type a plain scalar by the YAML 1.2 core schema.

    Example:
        >>> [scalar(text) for text in ("1e-4", "on", "010", "12:30", "0x1f", "~", "True")]
        [0.0001, 'on', 10, '12:30', 31, None, True]
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text, 10 if text.lstrip("+-").isdigit() else 0)
    if _FLOAT.match(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


# ------------------------------------------------------------------------------------------------------------------ reading


def parse_yaml(text: str, *, file: str, diagnostics: Diagnostics) -> Node | None:
    """Read one YAML document; None if the text is not valid YAML or empty.

    Adds MV001 (empty), MV002 (syntax), MV003 (duplicate key) and MV004 (tags, ``<<``, several documents) to ``diagnostics``.
    """
    try:
        builder = _Builder(file, diagnostics, _events_of_libyaml(text) or yaml.parse(text, Loader=yaml.SafeLoader))
        return builder.document()
    except yaml.MarkedYAMLError as error:
        _add_syntax_error(error, file, diagnostics)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        at = Position(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        diagnostics.add("MV002", f"the character {_code_point(error.character)} is not allowed in YAML", at=at, hint="remove it")
    except _Refused:
        pass
    return None


def _events_of_libyaml(text: str) -> Iterator[yaml.Event] | None:
    """The parser events of a text in which libyaml and PyYAML's own scanner agree; None for any other, and without libyaml."""
    if _LIBYAML is None or _READ_OTHERWISE.search(text):
        return None
    try:
        events = list(yaml.parse(text, Loader=_LIBYAML))
    except (yaml.YAMLError, UnicodeError):
        return None
    # A value that is left empty stands behind its key for PyYAML and before what follows for libyaml. An alias may be undefined,
    # and the message about that looks at the line, which libyaml's places do not know.
    is_unlike = any(
        isinstance(event, yaml.AliasEvent) or (isinstance(event, yaml.ScalarEvent) and not event.value and not event.style)
        for event in events
    )
    return None if is_unlike else iter(events)


class _Refused(Exception):
    """The document cannot be read further; the reason is in the report."""


class _Builder:
    """Turns parser events into nodes."""

    def __init__(self, file: str, diagnostics: Diagnostics, events: Iterator[yaml.Event]) -> None:
        self.file, self.diagnostics, self.events = file, diagnostics, events
        self.anchors: dict[str, Node] = {}
        self.count = 0

    def document(self) -> Node | None:
        next(self.events)  # StreamStart
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            self.diagnostics.add("MV001", "the file is empty", at=Position(self.file))
            return None
        first = next(self.events)
        is_empty = isinstance(first, yaml.ScalarEvent) and first.value == "" and not first.style and first.tag is None
        root = self.node(first, None, 0)
        if is_empty:
            self.diagnostics.add("MV001", "the file is empty", at=Position(self.file))
            return None
        next(self.events)  # DocumentEnd
        after = next(self.events)
        if isinstance(after, yaml.DocumentStartEvent):
            hint = "put each document into a file of its own; `extends` joins them"
            self.diagnostics.add("MV004", "a second document starts here", at=self.at(after), hint=hint)
        return root

    def at(self, event: yaml.Event) -> Position:
        mark = event.start_mark
        return Position(self.file, mark.line + 1, mark.column + 1) if mark else Position(self.file)

    def node(self, event: Any, key_position: Position | None, depth: int) -> Node:
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            limit = f"more than {MAX_NODES} values" if self.count > MAX_NODES else f"more than {MAX_DEPTH} levels"
            self.diagnostics.add("MV004", f"the document has {limit}", at=self.at(event))
            raise _Refused
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, key_position)
        position = self.at(event)
        value: dict[str, Node] | list[Node] | Scalar
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self.check_tag(event, "seq")
            value = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                value.append(self.node(item, None, depth + 1))
        else:
            self.check_tag(event, "map")
            value = self.mapping(depth)
        node = Node(value, position, key_position)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def alias(self, event: Any, key_position: Position | None) -> Node:
        if event.anchor not in self.anchors:
            mark = event.start_mark
            raise yaml.composer.ComposerError(None, None, f"found undefined alias {event.anchor!r}", mark)
        node = self.anchors[event.anchor]
        self.count += _size(node)
        return Node(node.value, self.at(event), key_position)

    def mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            position = self.at(key)
            if not isinstance(key, yaml.ScalarEvent):
                self.diagnostics.add("MV002", "a key must be a word, not a list, mapping or alias", at=position)
                raise _Refused
            if key.tag not in (None, "!"):
                self.refuse_tag(key)
            child = self.node(next(self.events), position, depth + 1)
            if key.value == "<<" and not key.style:
                hint = "use `extends` to build on another recipe, or an alias for a whole block"
                self.diagnostics.add("MV004", "merge keys (`<<`) are not accepted", at=position, hint=hint)
            elif key.value in found:
                first = found[key.value].key_position
                details = (f"it stands first at {first}",)
                self.diagnostics.add(
                    "MV003", f"the key {key.value!r} stands twice", at=position, details=details, hint="keep one of them"
                )
            else:
                found[key.value] = child
        return found

    def scalar(self, event: yaml.ScalarEvent) -> Scalar:
        tag = _CORE_TAGS.get(event.tag or "")
        if event.tag in (None, "!"):
            return event.value if event.style or event.tag else scalar(event.value)
        if tag == "str":
            return str(event.value)
        value = scalar(event.value)
        if tag == "float" and type(value) is int:
            return float(value)
        if tag is None or type(value).__name__.replace("NoneType", "null") != tag:
            self.refuse_tag(event)
        return value

    def check_tag(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent, expected: str) -> None:
        if event.tag not in (None, "!") and _CORE_TAGS.get(event.tag) != expected:
            self.refuse_tag(event)

    def refuse_tag(self, event: Any) -> None:
        tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
        hint = "remove the tag; a recipe is made of texts, numbers, lists and mappings"
        self.diagnostics.add("MV004", f"the tag {tag} is not accepted here", at=self.at(event), hint=hint)


def _code_point(character: int | str) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


def _size(node: Node) -> int:
    if isinstance(node.value, (dict, list)):
        children = node.value.values() if isinstance(node.value, dict) else node.value
        return 1 + sum(map(_size, children))
    return 1


def _add_syntax_error(error: yaml.MarkedYAMLError, file: str, diagnostics: Diagnostics) -> None:
    mark = error.problem_mark or error.context_mark
    at = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file)
    text = str(error.problem or error.context)
    details = []
    if error.context and error.context_mark:
        details.append(f"{error.context} that starts at line {error.context_mark.line + 1}")
    hint = next((hint for part, hint in _SYNTAX_HINTS.items() if part in text), None)
    if mark and "${" in (mark.get_snippet() or ""):
        hint = 'a reference inside braces needs quotes: {seed: "${train.seed}"}'
    diagnostics.add("MV002", f"not valid YAML: {text}", at=at, details=details, hint=hint)


# ------------------------------------------------------------------------------------------------------------------ writing


class _Dumper(yaml.SafeDumper):
    """Writes floats as ``1e-4`` and quotes every text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if text.lstrip("-") in ("inf", "nan"):
        text = text.replace("inf", ".inf").replace("nan", ".nan")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes Unicode line ends as they are and reads them back as spaces; only double quotes escape them.
    style = '"' if set(value) & set("\r\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_list(dumper: yaml.SafeDumper, value: list[Any] | tuple[Any, ...]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, (dict, list, tuple)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=is_flat)


def _represent_mapping(dumper: yaml.SafeDumper, value: dict[Any, Any]) -> yaml.MappingNode:
    pairs = [(str(key), child) for key, child in value.items()]
    return dumper.represent_mapping("tag:yaml.org,2002:map", pairs)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(tuple, _represent_list)
_Dumper.add_representer(dict, _represent_mapping)
for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list("-+.0123456789"))


def dump_yaml(data: Any) -> str:
    """Write plain data so that :func:`parse_yaml` reads the same back.

    Example:
        >>> print(dump_yaml({"train": {"learning_rate": 1e-05, "betas": (0.9, 0.95)}, "note": "on"}), end="")
        train:
          learning_rate: 1e-05
          betas: [0.9, 0.95]
        note: 'on'
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=100)
