"""Tensor specs, the symbol table and its invariants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlp_core.spec.contract import Axis, Contract, Symbol, SymbolTable, TensorSpec


@pytest.mark.parametrize(
    ("text", "dims", "dtype", "view", "is_optional"),
    [
        ("B L Dt", ("B", "L", "Dt"), "float", None, False),
        ("B L:bool", ("B", "L"), "bool", None, False),
        ("B N 768 @masked", ("B", "N", 768), "float", "masked", False),
        ("B N:bool?", ("B", "N"), "bool", None, True),
        ("GH GW:shape", ("GH", "GW"), "shape", None, False),
        ("B L:bool? @clean", ("B", "L"), "bool", "clean", True),
    ],
)
def test_short_form(text: str, dims: tuple, dtype: str, view: str | None, is_optional: bool) -> None:
    spec = TensorSpec.parse(text)
    assert (spec.dims, spec.dtype, spec.view, spec.is_optional) == (dims, dtype, view, is_optional)
    assert str(spec) == text


@pytest.mark.parametrize("text", ["B L:half", "B L @1st", "B L @masked view", "B L-1", "B 2*D"])
def test_arithmetic_and_unknown_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a tensor spec"):
        TensorSpec.parse(text)


def test_ports_default_to_the_argument_name() -> None:
    contract = Contract(
        needs={"image_tokens": "B N Di", "clean_tokens": TensorSpec.parse("B N Di @clean", port="image_tokens")},
        gives={"visible": TensorSpec.parse("B Nv Di", port="image_tokens")},
    )
    assert contract.needs["image_tokens"].port == contract.needs["clean_tokens"].port == "image_tokens"
    assert contract.gives["visible"].port == "image_tokens"
    assert contract.symbols() == {"B", "N", "Nv", "Di"}


def test_a_conflict_names_both_sources() -> None:
    table = SymbolTable()
    assert table.bind(Symbol("fusion", "D"), 384, "text") is None
    conflict = table.bind(Symbol("fusion", "D"), 768, "image")
    assert conflict is not None
    assert (conflict.first, conflict.first_source, conflict.second, conflict.second_source) == (384, "text", 768, "image")
    assert table.value(Symbol("fusion", "D")) == 384


names = st.integers(0, 7).map(lambda index: Symbol("one", f"S{index}"))
facts = st.lists(
    st.one_of(st.tuples(st.just("unify"), names, names), st.tuples(st.just("bind"), names, st.integers(1, 2))), max_size=25
)


@given(facts)
def test_unification_agrees_with_a_slow_reference(steps: list) -> None:
    """The union-find accepts a fact exactly if the classes built by repeated merging allow it."""
    table = SymbolTable()
    classes: list[set[Symbol]] = [{Symbol("one", f"S{index}")} for index in range(8)]
    numbers: dict[Symbol, int] = {}

    def group(symbol: Symbol) -> set[Symbol]:
        return next(one for one in classes if symbol in one)

    def number(symbol: Symbol) -> int | None:
        return next((numbers[one] for one in group(symbol) if one in numbers), None)

    for kind, left, right in steps:
        if kind == "bind":
            clash = number(left) not in (None, right)
            assert (table.bind(left, right, "x") is not None) == clash
            if not clash:
                numbers[left] = right
            continue
        a, b = number(left), number(right)
        clash = a is not None and b is not None and a != b
        assert (table.unify(left, right) is not None) == clash
        if not clash and group(left) is not group(right):
            merged = group(left) | group(right)
            classes = [one for one in classes if not one & merged] + [merged]
    for index in range(8):
        symbol = Symbol("one", f"S{index}")
        assert table.value(symbol) == number(symbol)


def test_the_long_form_holds_what_the_short_one_cannot() -> None:
    spec = TensorSpec.parse("B Nv Di", layout="dropped", port="image_tokens", when="image_is_masked")
    assert (spec.port, spec.when, spec.layout, spec.sees) == ("image_tokens", "image_is_masked", "dropped", None)
    assert TensorSpec.parse("B L D", sees="past").sees == "past"
    assert TensorSpec.parse("B L D @mae").view == "mae"


def test_a_ragged_axis_is_equal_to_itself_only() -> None:
    table = SymbolTable()
    text, other = Symbol("text", "L", "embed@clean"), Symbol("other", "L")
    assert table.bind(text, Axis("text", 32), "tokenizer") is None
    assert (table.size(text), table.value(text)) == (Axis("text", 32), 32)
    assert table.value(Symbol("text", "L", "embed@masked")) is None, "a symbol is local to its call in a view"
    assert table.bind(other, Axis("findings", 32), "findings") is None
    conflict = table.unify(text, other)
    assert conflict is not None
    assert (conflict.first, conflict.second) == (Axis("text", 32), Axis("findings", 32))
    assert table.bind(text, 32, "fusion") is not None, "a number is no ragged axis, not even the bound"
