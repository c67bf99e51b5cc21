"""Every component by name: what plugins register, who brought it, and the names that were retired. Light."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from medvlp_core.errors import PluginError, Problem, did_you_mean, nearest
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.kernel import KernelOp
from medvlp_core.spec.roles import Role


@attrs.frozen(kw_only=True)
class Retired:
    """A component that is gone: the distribution and version that no longer has it, and what to use instead."""

    since: str
    text: str


@attrs.define
class ComponentRegistry:
    """Every component that the loaded plugins registered, by name."""

    retired: dict[str, Retired] = attrs.field(factory=dict)
    _specs: dict[str, type[ComponentSpec]] = attrs.field(factory=dict)
    _distributions: dict[str, str] = attrs.field(factory=dict)

    def add(self, spec: type[ComponentSpec], *, distribution: str = "") -> None:
        """Register a spec class that ``@component`` declared.

        Raises:
            PluginError: not declared, or the name is taken or retired.
        """
        declaration = getattr(spec, "__dict__", {}).get("declaration")
        if declaration is None:
            found = f"{spec.__module__}.{spec.__qualname__}" if isinstance(spec, type) else repr(spec)
            hint = 'decorate it with @component("namespace.name", role=..., build=...)'
            raise PluginError(Problem(code="MV302", text=f"{found} is not a component", hint=hint))
        name = declaration.name
        hint = "component names are permanent and unique; give it another name"
        if name in self.retired:
            text = f"component {name!r} was retired in {self.retired[name].since}"
            raise PluginError(Problem(code="MV302", text=text, hint=hint))
        if name in self._specs:
            text = f"component {name!r} is already registered by {self._distributions[name] or 'another plugin'}"
            raise PluginError(Problem(code="MV302", text=text, hint=hint))
        self._specs[name] = spec
        self._distributions[name] = distribution

    def __getitem__(self, name: str) -> type[ComponentSpec]:
        return self._specs[name]

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._specs))

    def __len__(self) -> int:
        return len(self._specs)

    def distribution(self, name: str) -> str:
        """The distribution and version that registered a component, e.g. ``medvlp-mpma 0.1.0``."""
        return self._distributions[name]

    def of_role(self, role: Role) -> dict[str, type[ComponentSpec]]:
        """The components of one role, sorted by name."""
        return {name: self._specs[name] for name in self if self._specs[name].declaration.role is role}

    def offered(self, role: Role) -> list[str]:
        """The names of a role that hints may offer: all that are not deprecated."""
        return [name for name, kind in self.of_role(role).items() if not kind.declaration.deprecated]

    def hint(self, name: str, role: Role | None = None) -> str:
        """What to write instead of an unknown ``name``: the nearest, then the others that fit the slot."""
        if role is None:
            near = nearest(name, self)
            return f"did you mean '{near}'?" if near else "`medvlp list` shows all components"
        return did_you_mean(name, self.offered(role), what=f"{role} components")


@attrs.define
class PluginComponents:
    """What ``medvlp_register_components`` gets as ``registry``: takes the specs of one plugin."""

    namespace: str
    distribution: str
    own: ComponentRegistry = attrs.field(factory=ComponentRegistry)

    def add(self, spec: type[ComponentSpec]) -> None:
        """Register a spec class.

        Raises:
            PluginError: it is not declared with ``@component``, its name is taken, or it is outside the plugin's namespace.
        """
        declaration = getattr(spec, "declaration", None)
        if declaration is not None:
            self._check_namespace(declaration.name)
        self.own.add(spec, distribution=self.distribution)

    def retire(self, name: str, *, since: str, text: str) -> None:
        """Say of a component that is gone since which version of the plugin, and what to use instead (``use acme.gate``).

        Raises:
            PluginError: the plugin still has it, or it is outside the plugin's namespace.
        """
        self._check_namespace(name)
        if name in self.own:
            hint = 'a component that still works is deprecated: @component(..., deprecated="use ...")'
            raise PluginError(Problem(code="MV302", text=f"component {name!r} is registered and retired", hint=hint))
        self.own.retired[name] = Retired(since=f"{self.distribution.rpartition(' ')[0] or self.namespace} {since}", text=text)

    def _check_namespace(self, name: str) -> None:
        if not name.startswith(f"{self.namespace}."):
            text = f"component {name!r} is outside the plugin's namespace"
            hint = f"name it '{self.namespace}.{name.rpartition('.')[2]}', or rename the entry point"
            raise PluginError(Problem(code="MV302", text=text, hint=hint))


@attrs.define
class PluginKernels:
    """What ``medvlp_register_kernels`` gets as ``registry``: takes the ops of one plugin."""

    namespace: str
    found: dict[str, KernelOp] = attrs.field(factory=dict)

    def add(self, op: KernelOp) -> None:
        """Register an op.

        Raises:
            PluginError: it is not a :class:`KernelOp`, its name is outside the plugin's namespace, or registered already (MV302).
        """
        if not isinstance(op, KernelOp):
            hint = "add KernelOp(name=..., summary=..., build='package.module:KERNEL') from medvlp_core.kernels.dispatch"
            raise PluginError(Problem(code="MV302", text=f"{op!r} is not a KernelOp", hint=hint))
        if not op.name.startswith(f"{self.namespace}."):
            hint = f"name it '{self.namespace}.{op.name.rpartition('.')[2]}', or rename the entry point"
            raise PluginError(Problem(code="MV302", text=f"kernel {op.name!r} is outside the plugin's namespace", hint=hint))
        if op.name in self.found:
            raise PluginError(Problem(code="MV302", text=f"the kernel {op.name!r} is registered twice"))
        self.found[op.name] = op

    def __iter__(self) -> Iterator[KernelOp]:
        """The ops, by name."""
        return iter(sorted(self.found.values(), key=lambda op: op.name))
