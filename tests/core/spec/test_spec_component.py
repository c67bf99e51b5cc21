"""Declaring components: what is enforced at class creation and at registration."""

import attrs
import pytest

from medvlp_core.errors import PluginError
from medvlp_core.plugins.registry import ComponentRegistry
from medvlp_core.spec.component import ComponentSpec, SpecBlock, calls_of, component, param, params_of
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.roles import Role


def declare(name: str = "acme.gate") -> type[ComponentSpec]:
    @component(name, role=Role.FUSION, build="acme.fusion:Gate")
    @attrs.frozen(kw_only=True)
    class GateSpec(ComponentSpec):
        """A gate."""

        heads: int = param(4, help="attention heads", at_least=1)
        scale: float | None = param(None, help="scale")
        widths: tuple[int, ...] = param((1, 2), help="widths", at_least=1)

        def contract(self) -> Contract:
            return Contract()

        @classmethod
        def examples(cls) -> tuple[ComponentSpec, ...]:
            return (cls(), cls(heads=2))

    return GateSpec


def test_parameters_are_read_with_type_default_and_help() -> None:
    found = {one.name: (one.type_name, one.default, one.rules.help) for one in params_of(declare())}
    assert found == {
        "heads": ("int", 4, "attention heads"),
        "scale": ("float | None", None, "scale"),
        "widths": ("list of int", (1, 2), "widths"),
    }


def test_range_holds_for_python_users_too() -> None:
    with pytest.raises(ValueError, match=r"GateSpec.heads=0 must be at least 1"):
        declare()(heads=0)
    with pytest.raises(ValueError, match=r"must be at least 1"):
        declare()(widths=(3, 0))


def test_every_fault_of_a_class_is_listed() -> None:
    with pytest.raises(PluginError) as caught:

        @component("Gate", role="fusion", build="acme.fusion.Gate")  # type: ignore[arg-type]
        @attrs.define
        class Bad(ComponentSpec):
            heads: int = 4

    text = str(caught.value)
    for part in (
        "must be frozen",
        "needs a docstring",
        "'heads' must be keyword-only",
        "'heads' must be declared with param",
        "role='fusion' must be a Role: Role.DATA, Role.TOKENIZER,",
        "the name 'Gate' must be",
        "must be 'package.module:Class'",
        "it must define contract (or calls, if its module has several), examples",
    ):
        assert part in text


def test_double_registration_is_refused() -> None:
    registry = ComponentRegistry()
    registry.add(declare(), distribution="acme 1.0")
    with pytest.raises(PluginError, match=r"already registered by acme 1.0"):
        registry.add(declare())


def test_undeclared_subclass_is_refused() -> None:
    class Child(declare()):  # type: ignore[misc]
        """Inherits a declaration, but is not declared itself."""

    with pytest.raises(PluginError, match="is not a component"):
        ComponentRegistry().add(Child)


def test_hint_names_the_nearest_and_what_fits() -> None:
    registry = ComponentRegistry()
    registry.add(declare("acme.gate"))
    registry.add(declare("acme.grid"))
    assert registry.hint("acme.gaet", Role.FUSION) == "did you mean 'acme.gate'? other fusion components: acme.grid"
    assert registry.hint("zzz", Role.MASKING) == "there are no masking components"


def test_types_that_a_recipe_cannot_hold_are_refused() -> None:
    with pytest.raises(PluginError) as caught:

        @component("acme.gate", role=Role.FUSION, build="acme.fusion:Gate")
        @attrs.frozen(kw_only=True)
        class Odd(ComponentSpec):
            """A gate."""

            heads: list[int] = param((1,), help="heads")
            either: int | str = param(1, help="a number or a name")
            pair: tuple[int, int] = param((1, 2), help="two")
            shares: dict[str, float] = param({"left": 0.5}, help="of each side", at_most=1)
            deep: tuple[tuple[float, ...], ...] | None = param(None, help="rows")

            def contract(self) -> Contract:
                return Contract()

            @classmethod
            def examples(cls) -> tuple[ComponentSpec, ...]:
                return (cls(), cls())

    (problem,) = caught.value.problems
    assert [detail.partition(", which")[0] for detail in problem.details] == [
        "field 'heads' is list[int]",
        "field 'either' is int | str",
        "field 'pair' is tuple[int, int]",
    ]


def test_ranges_hold_for_the_values_of_a_mapping() -> None:
    @attrs.frozen(kw_only=True)
    class Shares(SpecBlock):
        """Shares."""

        shares: dict[str, float] = param({"left": 0.5}, help="of each side", at_most=1)

    with pytest.raises(ValueError, match=r"must be at most 1"):
        Shares(shares={"left": 0.5, "right": 1.5})


# --------------------------------------------------------------------------------------------------------------------- calls


def encoder(calls: object) -> ComponentSpec:
    @component("acme.words", role=Role.TEXT_ENCODER, build="acme.text:Words")
    @attrs.frozen(kw_only=True)
    class WordsSpec(ComponentSpec):
        """Words."""

        def calls(self) -> object:
            return calls

        @classmethod
        def examples(cls) -> tuple[ComponentSpec, ...]:
            return (cls(), cls())

    return WordsSpec()


def test_a_component_with_one_contract_has_the_call_forward() -> None:
    assert calls_of(declare()()) == {"forward": Contract()}


def test_calls_alone_are_enough_for_a_declaration() -> None:
    assert list(calls_of(encoder({"embed": Contract()}))) == ["embed"]


def test_the_core_adds_the_call_that_runs_the_text_layers_on_fused_embeddings() -> None:
    encode = Contract(
        needs={"text_embeddings": "B L Dt", "text_is_valid": "B L:bool"}, gives={"text_tokens": "B L Dt"}, sizes=("Dt",)
    )
    calls = calls_of(encoder({"embed": Contract(gives={"text_embeddings": "B L Dt"}), "encode": encode}))
    assert list(calls) == ["embed", "encode", "fused"]
    assert calls["encode"] == encode
    assert {argument: need.port for argument, need in calls["fused"].needs.items()} == {
        "text_embeddings": "fused_text_embeddings",
        "text_is_valid": "text_is_valid",
    }
    assert [one.port for one in calls["fused"].gives.values()] == ["fused_text_tokens"]
    assert calls["fused"].sizes == ("Dt",)


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (Contract(), "calls() returned Contract, expected a mapping of method names to Contract"),
        ({"encode": None}, "calls()['encode'] returned NoneType, expected Contract"),
    ],
)
def test_calls_that_are_none_are_named(calls: object, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        calls_of(encoder(calls))
    assert str(caught.value) == text
