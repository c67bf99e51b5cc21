"""What a plugin's module must be like before it enters the host: its interface version, its hooks, its specs."""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from medvlp_core import __version__
from medvlp_core.errors import Problem
from medvlp_core.plugins import candidate as candidates
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.component import ComponentSpec, component
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.roles import Role

CORE = f"medvlp-core {__version__}"


def module(**members: Any) -> types.ModuleType:
    found = types.ModuleType("acme.plugin")
    vars(found).update({"MEDVLP_INTERFACE": 2, **members})
    return found


def complaint(plugin: types.ModuleType) -> Problem:
    (broken,) = PluginHost.from_modules({"acme": plugin}).broken
    return broken.problem


# ------------------------------------------------------------------------------------------------------------ interface version


@pytest.mark.parametrize(
    ("version", "text", "hint"),
    [
        (
            None,
            f"it does not say which version of the plugin interface it is written for; {CORE} speaks 3 to 4",
            "its author adds `MEDVLP_INTERFACE = 4` to acme.plugin",
        ),
        ("4", "MEDVLP_INTERFACE must be a whole number, found str '4'", "its author writes `MEDVLP_INTERFACE = 4` in acme.plugin"),
        (
            True,
            "MEDVLP_INTERFACE must be a whole number, found bool True",
            "its author writes `MEDVLP_INTERFACE = 4` in acme.plugin",
        ),
        (
            5,
            f"it is written for version 5 of the plugin interface, and {CORE} speaks 3 to 4",
            "pip install --upgrade medvlp-core, or install an older version of it",
        ),
        (
            2,
            f"it is written for version 2 of the plugin interface, and {CORE} speaks 3 to 4",
            "upgrade it, or install an older medvlp-core",
        ),
    ],
)
def test_a_version_that_the_core_does_not_speak(version: Any, text: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "INTERFACE_VERSION", 4)
    monkeypatch.setattr(candidates, "OLDEST_INTERFACE", 3)
    problem = complaint(module(MEDVLP_INTERFACE=version))
    assert (problem.code, problem.text, problem.hint) == ("MV307", f"plugin 'acme': {text}", hint)
    good = PluginHost.from_modules({"old": module(MEDVLP_INTERFACE=3), "new": module(MEDVLP_INTERFACE=4)})
    assert not good.broken


# ------------------------------------------------------------------------------------------------------------------------ hooks


@hookimpl
def generator(plan: Any, diagnostics: Any) -> Iterator[None]:
    yield


@hookimpl
async def coroutine(plan: Any, diagnostics: Any) -> None: ...


@hookimpl
def with_default(plan: Any, diagnostics: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        (generator, "the hook medvlp_check_plan is not a plain function"),
        (coroutine, "the hook medvlp_check_plan is not a plain function"),
        (with_default, "the hook medvlp_check_plan: argument 'diagnostics' has a default"),
    ],
)
def test_hooks_that_would_not_be_called_as_written(hook: Any, text: str) -> None:
    problem = complaint(module(medvlp_check_plan=hook))
    assert (problem.code, problem.text) == ("MV302", f"plugin 'acme': {text}")


def test_one_module_is_one_plugin() -> None:
    same = module()
    host = PluginHost.from_modules({"acme": same, "other": same, "last": module()})
    assert [plugin.namespace for plugin in host.plugins] == ["acme", "last"]
    assert host.broken[0].problem.text == "plugin 'other': its module is already loaded as the plugin 'acme'"


# ------------------------------------------------------------------------------------------------------------------------ specs


def spec_with(examples: Any, contract: Any) -> type[ComponentSpec]:
    @component("acme.pairs", role=Role.DATA, build="acme.data:Pairs")
    @attrs.frozen(kw_only=True)
    class PairsSpec(ComponentSpec):
        """Pairs."""

        def contract(self) -> Contract:
            return contract()

        @classmethod
        def examples(cls) -> Any:
            return examples(cls)

    return PairsSpec


@pytest.mark.parametrize(
    ("examples", "contract", "code", "text", "detail"),
    [
        (lambda cls: (), Contract, "MV302", "examples() of acme.pairs gives nothing", None),
        (lambda cls: (cls(size=1),), Contract, "MV306", "the spec of acme.pairs fails on its own examples", "TypeError: "),
        (
            lambda cls: (cls(),),
            lambda: None,
            "MV306",
            "the spec of acme.pairs fails on its own examples",
            "TypeError: contract() returned NoneType, expected Contract",
        ),
    ],
)
def test_specs_are_asked_once(examples: Any, contract: Any, code: str, text: str, detail: str | None) -> None:
    @hookimpl
    def medvlp_register_components(registry: Any) -> None:
        registry.add(spec_with(examples, contract))

    problem = complaint(module(medvlp_register_components=medvlp_register_components))
    assert (problem.code, problem.text) == (code, f"plugin 'acme': {text}")
    assert (problem.details[0].startswith(detail)) if detail else not problem.details


# ------------------------------------------------------------------------------------------------------- hooks that raise later


@hookimpl
def raising_on_event(event: Any) -> None:
    raise RuntimeError(f"no disk for {event}")


def test_a_hook_that_raises_keeps_no_other_from_being_called() -> None:
    seen: list[Any] = []

    @hookimpl
    def medvlp_train_event(event: Any) -> None:
        seen.append(event)

    first, last = (module(medvlp_train_event=medvlp_train_event) for _ in range(2))
    host = PluginHost.from_modules({"first": first, "acme": module(medvlp_train_event=raising_on_event), "last": last})
    assert [str(problem) for problem in host.call("medvlp_train_event", event="a step")] == [
        "[MV306] warning: plugin 'acme': its hook medvlp_train_event failed: RuntimeError: no disk for a step "
        f"(in test_plugins_candidate.py, line {raising_on_event.__code__.co_firstlineno + 2})"
    ]
    assert seen == ["a step"] * 2


def test_an_observer_that_raises_is_named_once_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    @hookimpl
    def medvlp_train_event(event: Any) -> None:
        seen.append(event)
        raise RuntimeError("no disk")

    host = PluginHost.from_modules({"acme": module(medvlp_train_event=medvlp_train_event)})
    with caplog.at_level(logging.WARNING, logger="medvlp.plugins"):
        for step in range(3):
            host.observe("medvlp_train_event", event=step)
    assert seen == [0]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("\n    hint: the work continues; this hook of the plugin is not called again")
    assert list(host.observer_problems) == [("medvlp_train_event", "acme")]


def test_an_interrupt_passes_every_hook() -> None:
    @hookimpl
    def medvlp_train_event(event: Any) -> None:
        raise KeyboardInterrupt

    host = PluginHost.from_modules({"acme": module(medvlp_train_event=medvlp_train_event)})
    with pytest.raises(KeyboardInterrupt):
        host.observe("medvlp_train_event", event=1)
