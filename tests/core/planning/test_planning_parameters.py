"""Reading a block of parameters: types, ranges, places."""

from __future__ import annotations

import re

import attrs
import pytest

import medvlp_core
from medvlp_core import SpecError
from medvlp_core.errors import Diagnostics
from medvlp_core.planning.parameters import read_block
from medvlp_core.recipe.load import parse_yaml
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.spec.component import SpecBlock, param


@attrs.frozen(kw_only=True)
class Block(SpecBlock):
    """All parameter types."""

    count: int = param(help="count", at_least=1)
    share: float = param(0.5, help="share", at_least=0, below=1)
    mode: str = param("fast", help="mode", one_of=("fast", "slow"))
    flag: bool = param(False, help="flag")
    limit: float | None = param(None, help="limit", above=0)
    sizes: tuple[int, ...] = param((1,), help="sizes", at_least=1)
    weights: dict[str, float] = param(attrs.Factory(dict), help="weights", at_least=0)
    modes: tuple[str, ...] = param((), help="modes", one_of=("fast", "slow"))


def read(text: str) -> tuple[Block | None, list[str]]:
    diagnostics = Diagnostics()
    node = parse_yaml(text, file="block.yaml", diagnostics=diagnostics)
    assert node is not None
    block = read_block(Block, node, path="block", diagnostics=diagnostics)
    return block, [str(problem) for problem in diagnostics]


def test_values_get_their_declared_types() -> None:
    block, problems = read("{count: 2, share: 0, flag: true, limit: 1e-4, sizes: [3, 4], weights: {a: 1}}")
    assert not problems
    assert block == Block(count=2, share=0.0, flag=True, limit=1e-4, sizes=(3, 4), weights={"a": 1.0})
    assert isinstance(block.share, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "block.yaml:1:1 [MV105] block needs count (int): count\n    hint: add `count: ...`"),
        ("{count: 2.0}", "block.yaml:1:9 [MV103] block: count must be int, found float 2.0\n    hint: write 2"),
        ("{count: '2'}", "block.yaml:1:9 [MV103] block: count must be int, found str '2'\n    hint: write 2 without quotes"),
        ("{count: true}", "block.yaml:1:9 [MV103] block: count must be int, found bool True"),
        ("{count: 0}", "block.yaml:1:9 [MV104] block: count=0 must be at least 1"),
        ("{count: 1, share: 1}", "block.yaml:1:19 [MV104] block: share=1 must be below 1"),
        ("{count: 1, flag: on}", "block.yaml:1:18 [MV103] block: flag must be bool, found str 'on'\n    hint: write true or false"),
        (
            "{count: 1, sizes: 3}",
            "block.yaml:1:19 [MV103] block: sizes must be list of int, found int 3\n    hint: write a list: [3]",
        ),
        ("{count: 1, sizes: [1, a]}", "block.yaml:1:23 [MV103] block: sizes must be list of int, found str 'a'"),
        ("{count: 1, sizes: [1, 0]}", "block.yaml:1:23 [MV104] block: sizes[1]=0 must be at least 1"),
        (
            "{count: 1, modes: [fast, slwo]}",
            "block.yaml:1:26 [MV104] block: modes[1]='slwo' must be one of 'fast', 'slow'\n    hint: did you mean 'slow'?",
        ),
        ("{count: 1, weights: {a: 1, b: -2}}", "block.yaml:1:31 [MV104] block: weights.b=-2 must be at least 0"),
        (
            "{count: 1, mode: slwo}",
            "block.yaml:1:18 [MV104] block: mode='slwo' must be one of 'fast', 'slow'\n    hint: did you mean 'slow'?",
        ),
        (
            "{cuont: 1, count: 1}",
            "block.yaml:1:2 [MV102] block has no parameter 'cuont'\n"
            "    hint: did you mean 'count'? other parameters: flag, limit, mode, modes, share, sizes, weights",
        ),
        ("[1]", "block.yaml:1:1 [MV103] block: expected a mapping, found a list"),
    ],
)
def test_messages(text: str, message: str) -> None:
    block, problems = read(text)
    assert block is None
    assert problems == [message]


def test_every_bad_item_is_named() -> None:
    _, problems = read("{count: 1, sizes: [0, 1, -1]}")
    assert problems == [
        "block.yaml:1:20 [MV104] block: sizes[0]=0 must be at least 1",
        "block.yaml:1:26 [MV104] block: sizes[2]=-1 must be at least 1",
    ]


def test_null_only_where_the_type_says_so() -> None:
    block, problems = read("{count: 1, limit: null}")
    assert block == Block(count=1)
    _, problems = read("{count: 1, share: null}")
    assert problems[0].startswith("block.yaml:1:19 [MV103] block: share must be float, found null")


def test_fields_that_depend_on_each_other() -> None:
    diagnostics = Diagnostics()
    node = parse_yaml("{steps: 3, epochs: 2}", file="t.yaml", diagnostics=diagnostics)
    assert node is not None
    assert read_block(TrainSpec, node, path="train", diagnostics=diagnostics) is None
    assert str(diagnostics.problems[0]).startswith("t.yaml:1:9 [MV104] train: give one of steps and epochs, found both")


@pytest.mark.parametrize(
    "change",
    [
        "train.learning_rate=.inf",
        "train.max_grad_norm=.inf",
        "losses.gla.global=.inf",
        pytest.param(f"losses.gla.global={10**400}", id="huge"),
        "inputs.mean=.nan",
    ],
)
def test_numbers_that_are_not_finite_are_refused(change: str) -> None:
    with pytest.raises(SpecError, match="finite number"):
        medvlp_core.plan("mpma:small", change)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ("train.lr=0.1", "it is called 'learning_rate' here"),
        ("train.iters=3", "it is called 'steps' here"),
        ("train.last_batch=keep", "it is called 'drop_last' here"),
        ("train.drop_last=keep", "write true or false"),
    ],
)
def test_habits_of_other_libraries_are_answered(change: str, hint: str) -> None:
    with pytest.raises(SpecError, match=re.escape(hint)):
        medvlp_core.plan("mpma:small", [change])
