"""Finds plugins, checks what they declare and keeps a broken one from harming the others. Light.

A plugin is an entry point of the group ``medvlp.plugins``: its name is the namespace, its value a torch-free module with hooks.
Each is loaded and tried on a manager of its own; only when everything about it is right does it enter the host. So a broken
plugin leaves nothing behind, and ``medvlp list`` shows why it is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pluggy

from medvlp_core import hooks
from medvlp_core.components import ComponentRegistry, ComponentSpec
from medvlp_core.errors import PluginError, Problem, did_you_mean
from medvlp_core.kernels.registry import Kernel, KernelOp, PluginKernels

ALLOW_VARIABLE = "MEDVLP_PLUGINS"

#: Bundles of this repository, for the install line when a recipe names one that is missing.
KNOWN_BUNDLES = {"standard": "medvlp-standard", "mpma": "medvlp-mpma", "open_cxr": "medvlp-open-cxr"}


def install_hint(namespace: str) -> str | None:
    """How to get a bundle that is known but not loaded; None for an unknown namespace."""
    allowed = os.environ.get(ALLOW_VARIABLE)
    if allowed is not None and namespace in KNOWN_BUNDLES and namespace not in allowed.split(","):
        return f"{ALLOW_VARIABLE}={allowed} leaves the plugin {namespace!r} out"
    return f"pip install {KNOWN_BUNDLES[namespace]}" if namespace in KNOWN_BUNDLES else None


@attrs.frozen(kw_only=True)
class LoadedPlugin:
    """A plugin that works. ``distribution`` and ``version`` are empty for a module that no distribution brought."""

    namespace: str
    distribution: str
    version: str
    module: str
    components: tuple[str, ...]
    presets: tuple[str, ...]
    kernels: tuple[str, ...]
    hooks: tuple[str, ...]


@attrs.frozen(kw_only=True)
class BrokenPlugin:
    """A plugin that was left out, and why."""

    namespace: str
    distribution: str
    problem: Problem


@attrs.define
class PluginComponents:
    """What ``medvlp_register_components`` gets as ``registry``: takes the specs of one plugin."""

    namespace: str
    distribution: str
    _own: ComponentRegistry = attrs.field(factory=ComponentRegistry)

    def add(self, spec: type[ComponentSpec]) -> None:
        """Register a spec class.

        Raises:
            PluginError: it is not declared with ``@component``, its name is taken, or it is outside the plugin's namespace.
        """
        declaration = getattr(spec, "declaration", None)
        if declaration is not None and not declaration.name.startswith(f"{self.namespace}."):
            raise PluginError(
                Problem(
                    code="MV302",
                    text=f"component {declaration.name!r} is outside the plugin's namespace",
                    hint=f"name it '{self.namespace}.{declaration.name.rpartition('.')[2]}', or rename the entry point",
                )
            )
        self._own.add(spec, distribution=self.distribution)

    def specs(self) -> tuple[type[ComponentSpec], ...]:
        """The classes added so far, by name."""
        return tuple(self._own[name] for name in self._own)


@attrs.define
class PluginHost:
    """Everything that the loaded plugins brought. Make one with :func:`load_plugins`, or :meth:`from_modules` in tests."""

    components: ComponentRegistry = attrs.field(factory=ComponentRegistry)
    presets: dict[str, Path] = attrs.field(factory=dict)
    kernels: dict[str, KernelOp] = attrs.field(factory=dict)
    plugins: tuple[LoadedPlugin, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()
    manager: pluggy.PluginManager = attrs.field(factory=lambda: _new_manager())
    allowed: tuple[str, ...] | None = None

    @classmethod
    def from_modules(cls, modules: Mapping[str, Any]) -> PluginHost:
        """A host of exactly these modules (or objects with hooks) by namespace, without looking at what is installed."""
        host = cls()
        for namespace, module in modules.items():
            host._add(_Candidate(namespace=namespace, module=module))
        return host

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call a hook of every plugin; an argument that the hook does not have is an error.

        Raises:
            TypeError: no such hook, or not its arguments.
        """
        known = hook_arguments()
        if hook not in known:
            raise TypeError(f"there is no hook {hook!r}; {did_you_mean(hook, known, what='hooks')}")
        if set(arguments) != set(known[hook]):
            raise TypeError(f"{hook} takes {', '.join(known[hook])}, and was called with {', '.join(arguments) or 'nothing'}")
        return getattr(self.manager.hook, hook)(**arguments)

    def install_hint(self, namespace: str) -> str | None:
        """What to do so that a namespace is loaded in the version that is wanted; None if nothing is known about it."""
        for plugin in self.broken:
            if plugin.namespace == namespace:
                return f"the plugin {namespace!r} is installed and broken: {plugin.problem.text}"
        if self.allowed is not None and namespace not in self.allowed:
            return f"{ALLOW_VARIABLE}={','.join(self.allowed)} leaves the plugin {namespace!r} out"
        for loaded in self.plugins:
            if loaded.namespace == namespace and loaded.distribution:
                return f"pip install --upgrade {loaded.distribution}"
        return install_hint(namespace)

    def _add(self, candidate: _Candidate) -> None:
        """Try a plugin; it enters the host whole or not at all."""
        try:
            taken = [one for one in self.plugins if one.namespace == candidate.namespace]
            if taken:
                _refuse(f"the namespace {candidate.namespace!r} is already taken by {taken[0].distribution or taken[0].module}")
            plugin, specs, presets, kernels = _try(candidate)
        except PluginError as error:
            self._leave_out(candidate, error.problems[0])
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}{_where(error)}"
            self._leave_out(candidate, Problem(code="MV301", text="it could not be loaded", details=(reason,)))
        else:
            self.manager.register(candidate.load(), name=candidate.namespace)
            for spec in specs:
                self.components.add(spec, distribution=candidate.label)
            self.presets.update(presets)
            self.kernels.update(kernels)
            self.plugins = (*self.plugins, plugin)

    def _leave_out(self, candidate: _Candidate, problem: Problem) -> None:
        who = f"plugin {candidate.namespace!r}" + (f" ({candidate.label})" if candidate.label else "")
        problem = attrs.evolve(problem, text=f"{who}: {problem.text}")
        broken = BrokenPlugin(namespace=candidate.namespace, distribution=candidate.label, problem=problem)
        self.broken = (*self.broken, broken)


def load_plugins(allow: Sequence[str] | None = None) -> PluginHost:
    """Load the installed plugins: all, or those whose namespaces ``allow`` (else ``MEDVLP_PLUGINS=a,b``) lists; empty = none."""
    if allow is None and ALLOW_VARIABLE in os.environ:
        allow = [part.strip() for part in os.environ[ALLOW_VARIABLE].split(",") if part.strip()]
    host = PluginHost(allowed=tuple(allow) if allow is not None else None)
    points = importlib.metadata.entry_points(group=hooks.ENTRY_POINT_GROUP)
    found = {(point.name, point.value): point for point in points if allow is None or point.name in allow}
    for _, point in sorted(found.items()):
        host._add(_Candidate(namespace=point.name, point=point))
    for namespace in sorted(set(allow or ()) - {point.name for point in found.values()}):
        missing = Problem(code="MV301", text="it is not installed", hint=install_hint(namespace))
        host._leave_out(_Candidate(namespace=namespace), missing)
    return host


def hook_arguments() -> dict[str, tuple[str, ...]]:
    """Every hook with the arguments that it is called with."""
    found = inspect.getmembers(hooks, lambda value: hasattr(value, f"{hooks.PROJECT}_spec"))
    return {name: tuple(inspect.signature(function).parameters) for name, function in found}


# ------------------------------------------------------------------------------------------------------------ trying a plugin


@attrs.define(kw_only=True)
class _Candidate:
    """A plugin before anything about it is known to be right."""

    namespace: str
    module: Any = None
    point: importlib.metadata.EntryPoint | None = None

    def load(self) -> Any:
        if self.module is None and self.point is not None:
            self.module = self.point.load()
        return self.module

    @property
    def distribution(self) -> tuple[str, str]:
        dist = self.point.dist if self.point is not None else None
        return (dist.name, dist.version) if dist is not None else ("", "")

    @property
    def label(self) -> str:
        return " ".join(self.distribution).strip()


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    return manager


def _try(
    candidate: _Candidate,
) -> tuple[LoadedPlugin, tuple[type[ComponentSpec], ...], dict[str, Path], dict[str, KernelOp]]:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", candidate.namespace):
        _refuse(f"{candidate.namespace!r} cannot be a namespace", hint="use lower-case letters, digits and _")
    module = candidate.load()
    implemented = _check_hooks(module)
    manager = _new_manager()
    manager.register(module)
    manager.check_pending()
    registry = PluginComponents(candidate.namespace, candidate.label)
    manager.hook.medvlp_register_components(registry=registry)
    presets: dict[str, Path] = {}
    manager.hook.medvlp_register_presets(register=lambda name, path: _add_preset(presets, candidate.namespace, name, path))
    kernels = PluginKernels(candidate.namespace)
    manager.hook.medvlp_register_kernels(registry=kernels)
    name, version = candidate.distribution
    plugin = LoadedPlugin(
        namespace=candidate.namespace,
        distribution=name,
        version=version,
        module=getattr(module, "__name__", type(module).__name__),
        components=tuple(spec.declaration.name for spec in registry.specs()),
        presets=tuple(presets),
        kernels=tuple(op.name for op in kernels),
        hooks=implemented,
    )
    return plugin, registry.specs(), presets, {op.name: op for op in kernels}


def _check_hooks(module: Any) -> tuple[str, ...]:
    """The hooks that a module implements; every one must be marked, exist and take arguments that the hook has."""
    known = hook_arguments()
    implemented = []
    for name in dir(module):
        function = getattr(module, name)
        is_marked = hasattr(function, f"{hooks.PROJECT}_impl")
        if not is_marked and not (name.startswith(f"{hooks.PROJECT}_") and inspect.isroutine(function)):
            continue
        if name not in known:
            _refuse(f"there is no hook {name!r}", hint=did_you_mean(name, known, what="hooks"))
        if not is_marked:
            _refuse(f"{name} is not marked as a hook", hint="decorate it with @hookimpl from medvlp_core.hooks")
        for argument in inspect.signature(function).parameters:
            if argument not in known[name]:
                hint = did_you_mean(argument, known[name], what="arguments")
                _refuse(f"the hook {name} has no argument {argument!r}", hint=hint)
        implemented.append(name)
    return tuple(implemented)


def _add_preset(presets: dict[str, Path], namespace: str, name: str, path: Path) -> None:
    full = f"{namespace}:{name}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        _refuse(f"{name!r} cannot be the name of a preset", hint="use letters, digits, _ and -; the namespace comes by itself")
    if full in presets:
        _refuse(f"the preset {full!r} is registered twice", code="MV304")
    if not Path(path).is_file():
        _refuse(f"the preset {full!r} does not exist: {Path(path).name}", code="MV304", hint="list it in the package's data")
    presets[full] = Path(path)


def _refuse(text: str, *, code: str = "MV302", hint: str | None = None) -> None:
    raise PluginError(Problem(code=code, text=text, hint=hint))


def _where(error: BaseException) -> str:
    """The last line of the plugin's own code that the error passed, if it got that far."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if Path(frame.filename) != Path(__file__) and "importlib" not in frame.filename]
    return f" (in {Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


# -------------------------------------------------------------------------------------------------------------- import strings


def load_object(build: str, *, owner: str) -> Any:
    """Import what ``package.module:Name`` names; done when ``owner`` (a component or kernel) is built, not before.

    Raises:
        PluginError: MV303, with the import string and the reason.

    Example:
        >>> load_object("pathlib:Path", owner="acme.paths").__name__
        'Path'
    """
    module_name, _, attribute = build.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        missing = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None
        is_foreign = missing is not None and missing != module_name.partition(".")[0]
        problem = Problem(
            code="MV303",
            text=f"{owner} cannot be built: importing {build!r} failed",
            details=(f"{type(error).__name__}: {error}{_where(error)}",),
            hint=f"install the package that brings the module {missing!r}" if is_foreign else None,
        )
        raise PluginError(problem) from error


def load_kernel(op: KernelOp) -> Kernel:
    """Import the kernel that an op declares.

    Raises:
        PluginError: it cannot be imported (MV303), or is not the kernel of that op (MV302).
    """
    found = load_object(op.build, owner=op.name)
    if not isinstance(found, Kernel):
        hint = "build must name a Kernel of medvlp_core.kernels.registry"
        raise PluginError(Problem(code="MV302", text=f"{op.name}: {op.build} is not a Kernel", hint=hint))
    if found.name != op.name:
        text = f"{op.name}: {op.build} is the kernel of {found.name!r}"
        raise PluginError(Problem(code="MV302", text=text, hint="KernelOp and Kernel must have the same name"))
    return found
