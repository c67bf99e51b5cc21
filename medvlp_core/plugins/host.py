"""Finds plugins, checks what they declare and keeps a broken one from harming the others. Light.

A plugin is an entry point of the group ``medvlp.plugins``: its name is the namespace, its value a torch-free module with hooks.
Each is loaded and tried on a manager of its own; only when everything about it is right does it enter the host. So a broken
plugin leaves nothing behind, and ``medvlp list`` shows why it is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pluggy

from medvlp_core.errors import MedvlpError, PluginError, Position, Problem, describe_error, did_you_mean, traceback_of
from medvlp_core.plugins import hooks
from medvlp_core.plugins.candidate import Candidate, hook_arguments, new_manager, refuse
from medvlp_core.plugins.registry import ComponentRegistry
from medvlp_core.spec.kernel import KernelOp
from medvlp_core.spec.roles import Role

ALLOW_VARIABLE = "MEDVLP_PLUGINS"

#: Bundles of this repository: the install line when a recipe names one that is missing, and whose namespaces nobody else gets.
KNOWN_BUNDLES = {
    "standard": "medvlp-standard",
    "mpma": "medvlp-mpma",
    "open_cxr": "medvlp-open-cxr",
    "bench": "medvlp-bench",
    "gallery": "medvlp-gallery",
}

log = logging.getLogger("medvlp.plugins")


def install_hint(namespace: str) -> str | None:
    """How to get a bundle that is known but not loaded; None for an unknown namespace."""
    allowed = os.environ.get(ALLOW_VARIABLE)
    if allowed is not None and namespace in KNOWN_BUNDLES and namespace not in allowed.split(","):
        return f"{ALLOW_VARIABLE}={allowed} excludes the plugin {namespace!r}"
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
    warnings: tuple[Problem, ...] = ()


@attrs.frozen(kw_only=True)
class BrokenPlugin:
    """A plugin that was skipped, and why. ``traceback`` is empty where no code of the plugin raised."""

    namespace: str
    distribution: str
    problem: Problem
    traceback: str = ""

    @property
    def reason(self) -> str:
        """Everything about it in one line."""
        return ": ".join([self.problem.text, "; ".join(self.problem.details)]).removesuffix(": ")


@attrs.define
class PluginHost:
    """Everything that the loaded plugins brought. Make one with :func:`load_plugins`, or :meth:`from_modules` in tests."""

    components: ComponentRegistry = attrs.field(factory=ComponentRegistry)
    presets: dict[str, Path] = attrs.field(factory=dict)
    kernels: dict[str, KernelOp] = attrs.field(factory=dict)
    plugins: tuple[LoadedPlugin, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()
    manager: pluggy.PluginManager = attrs.field(factory=new_manager)
    allowed: tuple[str, ...] | None = None
    #: What observers failed at, see :meth:`observe`.
    observer_problems: dict[tuple[str, str], Problem] = attrs.field(factory=dict)

    @classmethod
    def from_modules(cls, modules: Mapping[str, Any], *, brought_by: Mapping[str, LoadedPlugin] | None = None) -> PluginHost:
        """A host of exactly these modules (or objects with hooks) by namespace, without looking at what is installed.

        ``brought_by``: plugins of another host, by namespace, whose distributions messages shall name.
        """
        known = {name: (one.distribution, one.version) for name, one in (brought_by or {}).items()}
        host = cls()
        for namespace, module in modules.items():
            host._add(Candidate(namespace=namespace, module=module, brought_by=known.get(namespace, ("", ""))))
        return host

    def call(self, hook: str, **arguments: Any) -> list[Problem]:
        """Call a hook of every plugin. One that raises keeps no other from being called; it is named in a warning (MV306).

        Raises:
            TypeError: no such hook, or not its arguments.
        """
        return [problem for _, problem in self._call(hook, arguments)]

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call a hook that only observes. One that raises is named once in the log (MV306) and not called again on this host.

        Raises:
            TypeError: no such hook, or not its arguments.
        """
        for namespace, problem in self._call(hook, arguments):
            said = attrs.evolve(problem, hint="the work continues; this hook of the plugin is not called again")
            self.observer_problems[hook, namespace] = said
            log.warning("%s", said)

    def install_hint(self, namespace: str) -> str | None:
        """What to do so that a namespace is loaded in the version that is wanted; None if nothing is known about it."""
        for plugin in self.broken:
            if plugin.namespace == namespace:
                return f"it is skipped: {plugin.reason}"
        if self.allowed is not None and namespace not in self.allowed:
            return f"{ALLOW_VARIABLE}={','.join(self.allowed)} excludes the plugin {namespace!r}"
        for loaded in self.plugins:
            if loaded.namespace == namespace and loaded.distribution:
                return f"pip install --upgrade {loaded.distribution}"
        return install_hint(namespace)

    def unknown_component(self, name: str, role: Role | None = None, *, at: Position | None = None) -> Problem:
        """What to say of a component that is not registered: retired, of a plugin that was skipped, not installed, misspelt."""
        namespace = name.partition(".")[0]
        what = role or "component"
        text, details = f"unknown {what} {name!r}", tuple[str, ...]()
        hint = self.components.hint(name, role)
        broken = next((plugin for plugin in self.broken if plugin.namespace == namespace), None)
        if (retired := self.components.retired.get(name)) is not None:
            text, hint = f"the {what} {name!r} was retired in {retired.since}", retired.text
        elif broken is not None:
            text, details = f"{text}: its plugin is skipped", (broken.problem.text, *broken.problem.details)
            hint = broken.problem.hint or f"repair or reinstall {broken.distribution or 'it'}; `medvlp list` shows what works"
        elif namespace not in {plugin.namespace for plugin in self.plugins}:
            hint = self.install_hint(namespace) or hint
        return Problem(code="MV101", text=text, position=at, details=details, hint=hint)

    def _call(self, hook: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Problem]]:
        known = hook_arguments()
        if hook not in known:
            raise TypeError(f"there is no hook {hook!r}; {did_you_mean(hook, known, what='hooks')}")
        if set(arguments) != set(known[hook]):
            raise TypeError(f"{hook} takes {', '.join(known[hook])}, and was called with {', '.join(arguments) or 'nothing'}")
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            namespace = implementation.plugin_name
            if (hook, namespace) in self.observer_problems:
                continue
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                reason = describe_error(error)
                if isinstance(error, MedvlpError) and error.problems:
                    reason = error.problems[0].text
                who = next(plugin for plugin in self.plugins if plugin.namespace == namespace)
                label = f" ({who.distribution} {who.version})" if who.distribution else ""
                text = f"plugin {namespace!r}{label}: its hook {hook} failed: {reason}"
                yield namespace, Problem(code="MV306", text=text, is_warning=True)

    def _add(self, candidate: Candidate) -> None:
        """Try a plugin; it enters the host whole or not at all."""
        try:
            taken = [one for one in self.plugins if one.namespace == candidate.namespace]
            if taken:
                owner = f"{taken[0].distribution} {taken[0].version}" if taken[0].distribution else taken[0].module
                hint = "uninstall one of the two, or ask its author for another name of the entry point"
                refuse(f"the namespace {candidate.namespace!r} is already taken by {owner}", hint=hint)
            offer = candidate.try_out()
            if (other := self.manager.get_name(candidate.load())) is not None:
                refuse(f"its module is already loaded as the plugin {other!r}", hint="one entry point for each module")
        except (Exception, SystemExit) as error:
            raised = error.__cause__ if isinstance(error, PluginError) else error
            self._skip(candidate, candidate.complaint(error), traceback_of(raised) if raised else "")
            return
        module = candidate.load()
        name, version = candidate.distribution
        self.manager.register(module, name=candidate.namespace)
        for component in offer.components:
            self.components.add(offer.components[component], distribution=candidate.label)
        self.components.retired.update(offer.components.retired)
        self.presets.update(offer.presets)
        self.kernels.update(offer.kernels)
        plugin = LoadedPlugin(
            namespace=candidate.namespace,
            distribution=name,
            version=version,
            module=getattr(module, "__name__", type(module).__name__),
            components=tuple(offer.components),
            presets=tuple(offer.presets),
            kernels=tuple(offer.kernels),
            hooks=offer.hooks,
            warnings=offer.warnings,
        )
        self.plugins = (*self.plugins, plugin)

    def _skip(self, candidate: Candidate, problem: Problem, trace: str = "") -> None:
        broken = BrokenPlugin(namespace=candidate.namespace, distribution=candidate.label, problem=problem, traceback=trace)
        self.broken = (*self.broken, broken)


def load_plugins(allow: Sequence[str] | None = None) -> PluginHost:
    """Load the installed plugins: all, or those whose namespaces ``allow`` (else ``MEDVLP_PLUGINS=a,b``) lists; empty = none."""
    if allow is None and ALLOW_VARIABLE in os.environ:
        allow = [part.strip() for part in os.environ[ALLOW_VARIABLE].split(",") if part.strip()]
    host = PluginHost(allowed=tuple(allow) if allow is not None else None)
    points = importlib.metadata.entry_points(group=hooks.ENTRY_POINT_GROUP)
    candidates = [Candidate(namespace=point.name, point=point) for point in points if allow is None or point.name in allow]
    for candidate in sorted(candidates, key=_turn):
        host._add(candidate)
    for namespace in sorted(set(allow or ()) - {candidate.namespace for candidate in candidates}):
        missing = Candidate(namespace=namespace)
        problem = Problem(code="MV301", text=f"{missing.who}: it is not installed", hint=install_hint(namespace))
        host._skip(missing, problem)
    return host


def _turn(candidate: Candidate) -> tuple[str, bool, str]:
    """By namespace. Of several distributions that claim one, its known owner comes first: a third party cannot push it out."""
    name = candidate.distribution[0]
    return candidate.namespace, name != KNOWN_BUNDLES.get(candidate.namespace), name
