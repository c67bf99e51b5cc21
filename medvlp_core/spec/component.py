"""How a component is declared: its role, its torch-free spec with documented parameters. Light.

Example:
    >>> import attrs
    >>> from medvlp_core.spec.component import ComponentSpec, component, param
    >>> from medvlp_core.spec.roles import Role
    >>> from medvlp_core.spec.contract import Contract, Divides
    >>> @component("acme.gate", role=Role.FUSION, build="acme.fusion:Gate")
    ... @attrs.frozen(kw_only=True)
    ... class GateSpec(ComponentSpec):
    ...     '''Adds a gated image vector to every text token.'''
    ...
    ...     heads: int = param(4, help="attention heads", at_least=1)
    ...
    ...     def contract(self) -> Contract:
    ...         return Contract(
    ...             needs={"text_tokens": "B L Dt", "image_tokens": "B N Di"},
    ...             gives={"fused_text_tokens": "B L Dt"},
    ...             sizes=("Dt", "Di"),
    ...             require=(Divides("Dt", by=self.heads, field="heads"),),
    ...         )
    ...
    ...     @classmethod
    ...     def examples(cls):
    ...         return (cls(heads=1), cls(heads=2))
    >>> GateSpec.declaration.name
    'acme.gate'
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import attrs

from medvlp_core.errors import PluginError, Problem
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.roles import Role

#: Version of the interface between the core and plugins. Raised when a plugin must change to keep working (docs/versioning.md).
INTERFACE_VERSION = 2
#: The oldest version that plugins may still be written for.
OLDEST_INTERFACE = 2


_PARAM = "medvlp_param"


@attrs.frozen(kw_only=True)
class ParamRules:
    """Help and range of one parameter. Bounds are inclusive unless named ``above``/``below``."""

    help: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    one_of: tuple[Any, ...] | None = None
    is_path: bool = False
    deprecated: str = ""

    def violation(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None. Items of a list or mapping are checked one by one."""
        if value is None or isinstance(value, bool):
            return None
        if isinstance(value, (tuple, list, dict)):
            items = value.values() if isinstance(value, dict) else value
            return next((text for item in items if (text := self.violation(item))), None)
        if self.one_of is not None and value not in self.one_of:
            return f"must be one of {', '.join(map(repr, self.one_of))}"
        if isinstance(value, (int, float)):
            if isinstance(value, float) and not math.isfinite(value):
                return "must be a finite number"
            if self.at_least is not None and not value >= self.at_least:
                return f"must be at least {self.at_least}"
            if self.at_most is not None and not value <= self.at_most:
                return f"must be at most {self.at_most}"
            if self.above is not None and not value > self.above:
                return f"must be above {self.above}"
            if self.below is not None and not value < self.below:
                return f"must be below {self.below}"
        return None


def param(
    default: Any = attrs.NOTHING,
    *,
    help: str,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    one_of: Iterable[Any] | None = None,
    is_path: bool = False,
    deprecated: str = "",
) -> Any:
    """Declare a parameter of a spec: default (none = required), help (with unit), range.

    ``is_path``: a file or folder. A relative one starts from the working folder, as on the command line; a run saves it as an
    absolute one, so that its recipe works from any folder.

    ``deprecated``: what to use instead (``use heads``). The parameter must have a default and still works; `medvlp check` warns
    where a recipe gives it another value.

    Raises:
        ValueError: when a spec is created from Python with a value out of range.
    """
    rules = ParamRules(
        help=help,
        at_least=at_least,
        at_most=at_most,
        above=above,
        below=below,
        one_of=tuple(one_of) if one_of is not None else None,
        is_path=is_path,
        deprecated=deprecated,
    )

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if text := rules.violation(value):
            raise ValueError(f"{type(instance).__name__}.{attribute.name}={value!r} {text}")

    return attrs.field(default=default, validator=check, metadata={_PARAM: rules})


@attrs.frozen(kw_only=True)
class Param:
    """One parameter as the registry, the checker and the docs see it."""

    name: str
    type: Any
    default: Any
    rules: ParamRules

    @property
    def is_required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is attrs.NOTHING

    @property
    def type_name(self) -> str:
        """The type as a user writes it: ``int``, ``float | None``, ``list of int``."""
        return type_name(self.type)


def type_name(kind: Any) -> str:
    """Name a parameter type for a message.

    Example:
        >>> type_name(tuple[int, ...]), type_name(int | None)
        ('list of int', 'int | None')
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, SpecBlock):
        return "block"
    if origin in (typing.Union, types.UnionType):
        return " | ".join("None" if arg is type(None) else type_name(arg) for arg in args)
    return getattr(kind, "__name__", str(kind))


def blocks_in(kind: Any) -> type[SpecBlock] | None:
    """``X`` if a parameter's type is ``dict[str, X]``, or that or None, with a block of parameters ``X``: blocks by name."""
    for one in (kind, *typing.get_args(kind)):
        args = typing.get_args(one) if typing.get_origin(one) is dict else ()
        if args and isinstance(args[1], type) and issubclass(args[1], SpecBlock):
            return args[1]
    return None


def params_of(spec: type) -> tuple[Param, ...]:
    """The parameters of a spec class, in the order of declaration."""
    return _params_of(spec)


@functools.cache
def _params_of(spec: type) -> tuple[Param, ...]:
    hints = typing.get_type_hints(spec)
    return tuple(
        Param(name=field.name, type=hints[field.name], default=field.default, rules=field.metadata[_PARAM])
        for field in attrs.fields(spec)
    )


@attrs.frozen(kw_only=True)
class Declaration:
    """Name, role and builder of a component; what to use instead if it is deprecated; how to install what it needs besides."""

    name: str
    role: Role
    build: str
    deprecated: str = ""
    install: str = ""


class SpecBlock:
    """Base of every block of parameters: components, and the core's own ``inputs`` and ``train``."""

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Problems between fields: ``(field, text, hint)``. Override where parameters depend on each other."""
        return ()


class ComponentSpec(SpecBlock, ABC):
    """Base of every component spec: frozen, keyword-only attrs classes with documented parameters.

    It defines :meth:`contract`, or :meth:`calls` where the module has several calls (a text encoder, an alignment).
    """

    declaration: ClassVar[Declaration]

    def contract(self) -> Contract:
        """What the call ``forward`` needs and gives with these parameters."""
        raise NotImplementedError

    def calls(self) -> Mapping[str, Contract]:
        """Every call by the name of its method."""
        return {"forward": self.contract()}

    @classmethod
    @abstractmethod
    def examples(cls) -> Iterable[ComponentSpec]:
        """At least two small instances; the conformance kit and the wiring tests run on them."""


def calls_of(spec: ComponentSpec) -> dict[str, Contract]:
    """The calls of a spec, checked; with ``fused``, a text encoder's ``encode`` once more, after an early fusion (as in MRM).

    It reads ``fused_text_embeddings`` instead of ``text_embeddings``; what it gives has the same names behind ``fused_``.

    Raises:
        TypeError: ``calls()`` returned no mapping of names to contracts.
    """
    calls = spec.calls()
    if not isinstance(calls, Mapping):
        raise TypeError(f"calls() returned {type(calls).__name__}, expected a mapping of method names to Contract")
    for name, contract in calls.items():
        if not isinstance(contract, Contract):
            method = "contract()" if type(spec).calls is ComponentSpec.calls else f"calls()[{name!r}]"
            raise TypeError(f"{method} returned {type(contract).__name__}, expected Contract")
    found = dict(calls)
    if type(spec).declaration.role is Role.TEXT_ENCODER and "encode" in found:
        encode = found["encode"]
        needs = {
            key: attrs.evolve(one, port="fused_text_embeddings") if one.port == "text_embeddings" else one
            for key, one in encode.needs.items()
        }
        gives = {key: attrs.evolve(one, port=f"fused_{one.port}") for key, one in encode.gives.items()}
        found["fused"] = attrs.evolve(encode, needs=needs, gives=gives)
    return found


S = TypeVar("S", bound=type)
_NAME = re.compile(r"^[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*$")
_BUILD = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def spec_faults(cls: type) -> list[str]:
    """What keeps a class from being a parameter block: not frozen, positional, undocumented fields, no docstring."""
    faults = []
    if not attrs.has(cls) or not issubclass(cls, SpecBlock):
        return ["it must be an attrs class that derives from ComponentSpec"]
    if not attrs.inspect(cls).is_frozen:
        faults.append("it must be frozen: decorate it with @attrs.frozen(kw_only=True)")
    if not inspect.getdoc(cls) or cls.__doc__ is None:
        faults.append("it needs a docstring: the first line is shown by `medvlp list`")
    hints = typing.get_type_hints(cls)
    for field in attrs.fields(cls):
        if field.init and not field.kw_only:
            faults.append(f"field {field.name!r} must be keyword-only: use @attrs.frozen(kw_only=True)")
        if _PARAM not in field.metadata:
            faults.append(f"field {field.name!r} must be declared with param(..., help=...)")
        elif not field.metadata[_PARAM].help:
            faults.append(f"field {field.name!r} needs a help text")
        elif field.metadata[_PARAM].deprecated and field.default is attrs.NOTHING:
            faults.append(f"field {field.name!r} is deprecated and needs a default")
        if field.type is None:
            faults.append(f"field {field.name!r} needs a type annotation")
        elif not _is_recipe_type(kind := hints[field.name]):
            kinds = "int, float, str, bool, tuple[X, ...] or dict[str, X] of these, X | None"
            faults.append(f"field {field.name!r} is {inspect.formatannotation(kind)}, which a recipe cannot hold; it holds {kinds}")
    return faults


def _is_recipe_type(kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return len(inner) == 1 and _is_recipe_type(inner[0])
    if origin is tuple:
        return args[1:] == (Ellipsis,) and _is_recipe_type(args[0])
    if origin is dict and args[0] is str:
        return _is_recipe_type(args[1])
    return kind in (int, float, str, bool) or (isinstance(kind, type) and issubclass(kind, SpecBlock))


def component(name: str, *, role: Role, build: str, deprecated: str = "", install: str = "") -> Callable[[S], S]:
    """Declare a spec class as a component. ``build`` is ``package.module:Class``, imported only when built.

    ``deprecated``: what to use instead (``use acme.gated_fusion``); the component still works, and `medvlp check` warns.
    ``install``: the command that brings an optional dependency of ``build`` (``pip install acme[vit]``), the hint if it is missing.

    Raises:
        PluginError: the name, the role, the build string or the class is not allowed, with every fault listed.
    """

    def declare(cls: S) -> S:
        faults = spec_faults(cls)
        if not isinstance(role, Role):
            faults.append(f"role={role!r} must be a Role: {', '.join(f'Role.{one.name}' for one in Role)}")
        if not _NAME.match(name):
            faults.append(f"the name {name!r} must be 'namespace.noun_phrase' in lower case")
        if not _BUILD.match(build):
            faults.append(f"build={build!r} must be 'package.module:Class'")
        if not issubclass(cls, ComponentSpec):
            faults.append("it must derive from ComponentSpec")
        else:
            has_calls = cls.contract is not ComponentSpec.contract or cls.calls is not ComponentSpec.calls
            missing = ([] if has_calls else ["contract (or calls, if its module has several)"]) + sorted(
                getattr(cls, "__abstractmethods__", ())
            )
            faults += [f"it must define {', '.join(missing)}"] if missing else []
        if faults:
            raise PluginError(
                Problem(
                    code="MV302",
                    text=f"{cls.__module__}.{cls.__qualname__} cannot be component {name!r}",
                    details=tuple(faults),
                )
            )
        cls.declaration = Declaration(name=name, role=role, build=build, deprecated=deprecated, install=install)  # type: ignore[attr-defined]
        return cls

    return declare
