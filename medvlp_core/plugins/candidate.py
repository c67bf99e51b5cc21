"""Tries one plugin on a manager of its own: its entry point, its interface version, its hooks, what it registers. Light."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pluggy

from medvlp_core import __version__
from medvlp_core.errors import MedvlpError, PluginError, Problem, describe_error, did_you_mean
from medvlp_core.plugins import hooks
from medvlp_core.plugins.registry import ComponentRegistry, PluginComponents, PluginKernels
from medvlp_core.spec.component import INTERFACE_VERSION, OLDEST_INTERFACE, calls_of
from medvlp_core.spec.kernel import KernelOp

#: What a plugin's module says: the version of the interface that it is written for.
INTERFACE_NAME = "MEDVLP_INTERFACE"
#: Namespaces that no installed plugin gets, and whose they are.
RESERVED = {"kit": "the conformance kit", "medvlp": "medvlp itself", "medvlp_core": "medvlp itself"}
CORE = f"medvlp-core {__version__}"


@attrs.frozen(kw_only=True)
class Offer:
    """What a plugin brings, after everything about it was found to be right."""

    components: ComponentRegistry
    presets: dict[str, Path]
    kernels: dict[str, KernelOp]
    hooks: tuple[str, ...]
    warnings: tuple[Problem, ...]


@attrs.define(kw_only=True)
class Candidate:
    """A plugin before anything about it is known to be right: an entry point, or a module in tests."""

    namespace: str
    module: Any = None
    point: importlib.metadata.EntryPoint | None = None
    #: Name and version of what brought a module that is given.
    brought_by: tuple[str, str] = ("", "")

    @property
    def distribution(self) -> tuple[str, str]:
        """Name and version of what was installed; empty for a module that no distribution brought."""
        dist = self.point.dist if self.point is not None else None
        return (dist.name, dist.version) if dist is not None else self.brought_by

    @property
    def label(self) -> str:
        """``acme-fusion 1.2``, or nothing."""
        return " ".join(self.distribution).strip()

    @property
    def who(self) -> str:
        """``plugin 'acme' (acme-fusion 1.2)``, as messages name it."""
        return f"plugin {self.namespace!r}" + (f" ({self.label})" if self.label else "")

    def load(self) -> Any:
        """The module.

        Raises:
            PluginError: the entry point leads nowhere (MV301); other errors are those of the plugin's own code.
        """
        if self.module is None and self.point is not None:
            self.module = _follow(self.point)
        return self.module

    def try_out(self) -> Offer:
        """Load it and let it register.

        Raises:
            PluginError: something is not allowed (MV302, MV304) or for another interface (MV307); other errors are its own.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.namespace):
            refuse(f"{self.namespace!r} cannot be a namespace", hint="use lower-case letters, digits and _")
        if self.point is not None and self.namespace in RESERVED:
            hint = "its author gives the entry point another name"
            refuse(f"the namespace {self.namespace!r} belongs to {RESERVED[self.namespace]}", hint=hint)
        had_torch = "torch" in sys.modules
        # What it prints must not get into `medvlp schema > recipe.json`.
        with contextlib.redirect_stdout(sys.stderr):
            module = self.load()
            _check_interface(module, self)
            implemented = _check_hooks(module)
            manager = new_manager()
            manager.register(module)
            manager.check_pending()
            registry = PluginComponents(self.namespace, self.label)
            manager.hook.medvlp_register_components(registry=registry)
            presets: dict[str, Path] = {}
            manager.hook.medvlp_register_presets(register=lambda name, path: _add_preset(presets, self.namespace, name, path))
            kernels = PluginKernels(self.namespace)
            manager.hook.medvlp_register_kernels(registry=kernels)
            _ask_specs(registry.own)
        warnings = []
        if not had_torch and "torch" in sys.modules:
            hint = "import it in the modules that `build` names: they are loaded when something is built"
            text = f"{self.who}: loading it imports torch, and every command waits for that"
            warnings.append(Problem(code="MV302", text=text, hint=hint, is_warning=True))
        ops = {op.name: op for op in kernels}
        return Offer(components=registry.own, presets=presets, kernels=ops, hooks=implemented, warnings=tuple(warnings))

    def complaint(self, error: BaseException) -> Problem:
        """What to say of an error that trying it raised."""
        if isinstance(error, MedvlpError) and error.problems:
            problem = error.problems[0]
        else:
            problem = Problem(
                code="MV301", text="it could not be loaded", details=(describe_error(error),), hint=self._import_hint(error)
            )
        return attrs.evolve(problem, text=f"{self.who}: {problem.text}")

    def _import_hint(self, error: BaseException) -> str | None:
        missing = (error.name or "") if isinstance(error, ImportError) else ""
        if missing.partition(".")[0] == "medvlp_core":
            return f"it may be written for another version than {CORE}: upgrade medvlp-core or {self.distribution[0] or 'it'}"
        if isinstance(error, ModuleNotFoundError) and missing:
            return f"install the package that brings the module {missing.partition('.')[0]!r}"
        return None


def new_manager() -> pluggy.PluginManager:
    """A manager that knows every hook and no plugin."""
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    return manager


def hook_arguments() -> dict[str, tuple[str, ...]]:
    """Every hook with the arguments that it is called with."""
    found = inspect.getmembers(hooks, lambda value: hasattr(value, f"{hooks.PROJECT}_spec"))
    return {name: tuple(inspect.signature(function).parameters) for name, function in found}


def refuse(text: str, *, code: str = "MV302", hint: str | None = None) -> NoReturn:
    """Leave the plugin out.

    Raises:
        PluginError: always.
    """
    raise PluginError(Problem(code=code, text=text, hint=hint))


def _follow(point: importlib.metadata.EntryPoint) -> Any:
    """What an entry point names; said precisely where it leads nowhere."""
    what = f"its entry point `{point.name} = {point.value}` leads nowhere"
    hint = "repair the entry point in its pyproject.toml, or the list of packages to install"
    try:
        found: Any = importlib.import_module(point.module)
    except ModuleNotFoundError as error:
        if error.name and f"{point.module}.".startswith(f"{error.name}."):
            refuse(f"{what}: there is no module {error.name!r}", code="MV301", hint=hint)
        raise
    for attribute in filter(None, (point.attr or "").split(".")):
        if not hasattr(found, attribute):
            refuse(f"{what}: {point.module} has no {attribute!r}", code="MV301", hint=hint)
        found = getattr(found, attribute)
    return found


def _check_interface(module: Any, candidate: Candidate) -> None:
    """The module must say which version of the interface it is written for, and it must be one that the core speaks."""
    name = getattr(module, "__name__", type(module).__name__)
    version = getattr(module, INTERFACE_NAME, None)
    spoken = str(INTERFACE_VERSION) if OLDEST_INTERFACE == INTERFACE_VERSION else f"{OLDEST_INTERFACE} to {INTERFACE_VERSION}"
    line = f"{INTERFACE_NAME} = {INTERFACE_VERSION}"
    if version is None:
        text = f"it does not say which version of the plugin interface it is written for; {CORE} speaks {spoken}"
        refuse(text, code="MV307", hint=f"its author adds `{line}` to {name}")
    if type(version) is not int:
        text = f"{INTERFACE_NAME} must be a whole number, found {type(version).__name__} {version!r}"
        refuse(text, code="MV307", hint=f"its author writes `{line}` in {name}")
    written = f"it is written for version {version} of the plugin interface, and {CORE} speaks {spoken}"
    plugin = candidate.distribution[0] or "version of it"
    if version > INTERFACE_VERSION:
        refuse(written, code="MV307", hint=f"pip install --upgrade medvlp-core, or install an older {plugin}")
    if version < OLDEST_INTERFACE:
        hint = f"pip install --upgrade {plugin}" if candidate.label else "upgrade it"
        refuse(written, code="MV307", hint=f"{hint}, or install an older medvlp-core")


def _check_hooks(module: Any) -> tuple[str, ...]:
    """The hooks that a module implements; every one must be marked, exist and be a plain function of the hook's arguments."""
    known = hook_arguments()
    implemented = []
    for name in dir(module):
        function = getattr(module, name)
        is_marked = hasattr(function, f"{hooks.PROJECT}_impl")
        if not is_marked and not (name.startswith(f"{hooks.PROJECT}_") and inspect.isroutine(function)):
            continue
        if name not in known:
            refuse(f"there is no hook {name!r}", hint=did_you_mean(name, known, what="hooks"))
        if not is_marked:
            refuse(f"{name} is not marked as a hook", hint="decorate it with @hookimpl from medvlp_core")
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            refuse(f"the hook {name} is not a plain function", hint="no yield (a hook cannot wrap those of others), no async")
        for argument in inspect.signature(function).parameters.values():
            if argument.name not in known[name]:
                hint = did_you_mean(argument.name, known[name], what="arguments")
                refuse(f"the hook {name} has no argument {argument.name!r}", hint=hint)
            if argument.default is not argument.empty:
                hint = "arguments with defaults are not passed; write it without one"
                refuse(f"the hook {name}: argument {argument.name!r} has a default", hint=hint)
        implemented.append(name)
    return tuple(implemented)


def _ask_specs(components: ComponentRegistry) -> None:
    """Ask every spec for its examples and their contracts once: commands that list and document components rely on them."""
    for name in components:
        try:
            examples = list(components[name].examples())
            for example in examples:
                calls_of(example)
        except Exception as error:
            kind = components[name]
            details = (describe_error(error), f"{kind.__module__}.{kind.__qualname__}")
            problem = Problem(code="MV306", text=f"the spec of {name} fails on its own examples", details=details)
            raise PluginError(problem) from error
        if not examples:
            refuse(f"examples() of {name} gives nothing", hint="give at least two small instances")


def _add_preset(presets: dict[str, Path], namespace: str, name: str, path: Path) -> None:
    full = f"{namespace}:{name}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        refuse(f"{name!r} cannot be the name of a preset", hint="use letters, digits, _ and -; the namespace comes by itself")
    if full in presets:
        refuse(f"the preset {full!r} is registered twice", code="MV304")
    if not Path(path).is_file():
        refuse(f"the preset {full!r} does not exist: {Path(path).name}", code="MV304", hint="list it in the package's data")
    presets[full] = Path(path)
