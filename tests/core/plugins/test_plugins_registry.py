"""Names over time: deprecated components and parameters work and say so, retired names say what replaces them."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import attrs
import pytest

from medvlp_core.cli import main
from medvlp_core.describe.json_schema import json_schema
from medvlp_core.errors import PluginError
from medvlp_core.plugins import host as plugins
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import PluginHost
from medvlp_core.plugins.registry import PluginComponents
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.roles import Role


@component("acme.gated_fusion", role=Role.FUSION, build="acme.fusion:Gate")
@attrs.frozen(kw_only=True)
class GateSpec(ComponentSpec):
    """A gate for each head."""

    heads: int = param(4, help="attention heads", at_least=1)
    groups: int | None = param(None, help="attention heads", deprecated="use heads")

    def contract(self) -> Contract:
        return Contract(needs={"text_tokens": "B L D"}, gives={"fused_text_tokens": "B L D"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls(heads=2))


@component("acme.gate", role=Role.FUSION, build="acme.fusion:Gate", deprecated="use acme.gated_fusion: it has a gate for each head")
@attrs.frozen(kw_only=True)
class OldGateSpec(GateSpec):
    """One gate."""


@hookimpl
def medvlp_register_components(registry: Any) -> None:
    registry.add(GateSpec)
    registry.add(OldGateSpec)
    registry.retire("acme.switch", since="0.4", text="use acme.gated_fusion with heads: 1")


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> PluginHost:
    """A plugin with a history, as the commands see it."""
    found = types.ModuleType("acme")
    vars(found).update(MEDVLP_INTERFACE=2, medvlp_register_components=medvlp_register_components)
    host = PluginHost.from_modules({"acme": found})
    assert not host.broken
    monkeypatch.setattr(plugins, "load_plugins", lambda: host)
    return host


def test_a_deprecated_component_works_and_warns(
    acme: PluginHost, tmp_path: Path, capsys: Any, host: PluginHost, micro: str
) -> None:
    for name in host.components:
        acme.components.add(host.components[name])
    path = tmp_path / "old.yaml"
    lines = micro.splitlines()
    fusion = next(index for index, line in enumerate(lines) if line.startswith("  fusion:"))
    lines[fusion] = "  fusion: {use: acme.gate, groups: 2}"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out == (
        f"{path}:{fusion + 1}:17 [MV109] warning: model.fusion (acme.gate): this component is deprecated\n"
        "    hint: use acme.gated_fusion: it has a gate for each head\n"
        f"{path}:{fusion + 1}:28 [MV109] warning: model.fusion (acme.gate): the parameter groups is deprecated\n"
        "    hint: use heads\n"
        f"{path}: ok, 9 components, 4 loss terms, 8 calls a step, 2 warnings\n"
    )


def test_commands_and_editors_mark_what_is_deprecated(acme: PluginHost, capsys: Any) -> None:
    main(["list"])
    listed = capsys.readouterr().out
    assert "  acme.gate          (deprecated: use acme.gated_fusion: it has a gate for each head) One gate.\n" in listed
    assert "  acme.gated_fusion  A gate for each head.\n" in listed
    main(["show", "acme.gate"])
    shown = capsys.readouterr().out
    assert "  deprecated: use acme.gated_fusion: it has a gate for each head\n" in shown
    assert "      deprecated: use heads. attention heads\n" in shown
    schema = json_schema(acme.components)["definitions"]
    assert (schema["acme.gate"]["deprecated"], schema["acme.gated_fusion"].get("deprecated")) == (True, None)
    parameters = schema["acme.gated_fusion"]["properties"]
    assert (parameters["groups"]["deprecated"], parameters["heads"].get("deprecated")) == (True, None)


def test_hints_offer_nothing_that_is_deprecated(acme: PluginHost) -> None:
    assert acme.components.hint("acme.gatee", Role.FUSION) == "did you mean 'acme.gated_fusion'?"
    assert acme.components.hint("other.thing", Role.FUSION) == "fusion components: acme.gated_fusion"


def test_a_retired_name_says_what_replaces_it(acme: PluginHost, capsys: Any) -> None:
    problem = acme.unknown_component("acme.switch", Role.FUSION)
    assert str(problem) == (
        "[MV101] the fusion 'acme.switch' was retired in acme 0.4\n    hint: use acme.gated_fusion with heads: 1"
    )
    assert main(["show", "acme.switch"]) == 1
    assert "[MV101] the component 'acme.switch' was retired in acme 0.4\n" in capsys.readouterr().err


def test_names_are_permanent() -> None:
    own = PluginComponents("acme", "acme-x 1.2")
    own.add(GateSpec)
    for name, text in (
        ("acme.gated_fusion", "component 'acme.gated_fusion' is registered and retired"),
        ("other.gate", "component 'other.gate' is outside the plugin's namespace"),
    ):
        with pytest.raises(PluginError) as caught:
            own.retire(name, since="1.0", text="use something else")
        assert caught.value.problems[0].text == text
    own.retire("acme.gate", since="1.0", text="use acme.gated_fusion")
    with pytest.raises(PluginError, match=r"component 'acme.gate' was retired in acme-x 1.0"):
        own.add(OldGateSpec)


def test_a_deprecated_parameter_needs_a_default() -> None:
    with pytest.raises(PluginError, match="field 'groups' is deprecated and needs a default"):

        @component("acme.gate", role=Role.FUSION, build="acme.fusion:Gate")
        @attrs.frozen(kw_only=True)
        class Spec(GateSpec):
            """A gate."""

            groups: int = param(help="groups", deprecated="use heads")
