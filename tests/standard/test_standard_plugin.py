"""What the standard bundle looks at in a checked plan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import medvlp_standard
import pytest

import medvlp_core
from medvlp_core.errors import Problem

EXAMPLES = Path(medvlp_standard.__file__).parent / "example_models"


@pytest.fixture
def warnings(micro: str, tmp_path: Path) -> Callable[[str, str], tuple[Problem, ...]]:
    """The MV210 warnings of the micro recipe with another tokenizer and text encoder."""

    def find(tokenizer: str, text_encoder: str) -> tuple[Problem, ...]:
        recipe = micro.replace("{use: standard.wordpiece, vocab_size: 300, max_length: 32}", tokenizer)
        recipe = recipe.replace("{use: standard.bert, width: 32, layers: 1, heads: 2}", text_encoder)
        recipe = recipe.replace("gla: {use: mpma.global_local, dim: 8}", "gla: {use: standard.info_nce, dim: 8}")
        recipe = recipe.replace("{use: mpma.memory_fusion, slots: 8, topk: 2, heads: 2, layers: 1}", "{use: standard.no_fusion}")
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe)
        return tuple(problem for problem in medvlp_core.plan(path).warnings if problem.code == "MV210")

    return find


def hf(component: str, model: Path | str, more: str = "") -> str:
    return f"{{use: standard.{component}, model: {model}{more}}}"


def test_pretrained_weights_with_another_tokenizer_are_a_warning(warnings: Callable[..., tuple[Problem, ...]]) -> None:
    bert = EXAMPLES / "bert"
    (warning,) = warnings("{use: standard.wordpiece, vocab_size: 300, max_length: 16}", hf("hf_text", "acme/radbert"))
    assert warning.is_warning
    assert "model.text_encoder (standard.hf_text) has the weights of 'acme/radbert'" in warning.text
    assert "tokenizer (standard.wordpiece) numbers words in another way" in warning.text
    assert warning.position is not None
    assert warning.position.line > 1
    assert "model: acme/radbert" in (warning.hint or "")
    (other,) = warnings(hf("hf_tokenizer", bert, ", max_length: 16"), hf("hf_text", "acme/radbert"))
    assert f"the vocabulary of '{bert}'" in other.text


def test_the_models_own_tokenizer_and_random_weights_are_fine(warnings: Callable[..., tuple[Problem, ...]], tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "bert", tmp_path / "bert")
    (tmp_path / "same").symlink_to(tmp_path / "bert")
    tokenizer = hf("hf_tokenizer", tmp_path / "bert", ", max_length: 16")
    assert warnings(tokenizer, hf("hf_text", tmp_path / "bert")) == ()
    assert warnings(tokenizer, hf("hf_text", tmp_path / "same")) == (), "another name of the same folder"
    word_piece = "{use: standard.wordpiece, vocab_size: 300, max_length: 16}"
    assert warnings(word_piece, hf("hf_text", tmp_path / "bert", ", pretrained: false")) == ()
