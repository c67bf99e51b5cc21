"""Specs of the standard text encoders. Light."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from medvlp_core import AtLeast, ComponentSpec, Constraint, Contract, Dim, Role, TensorSpec, component, param
from medvlp_standard.hf_facts import is_path, local_folder, text_facts


def _text_calls(width: Dim, require: tuple[Constraint, ...]) -> dict[str, Contract]:
    tokens = TensorSpec(dims=("B", "L", width))
    sizes = ("V", "L", "Dt")
    return {
        "embed": Contract(
            needs={"token_ids": "B L:int", "vocabulary": "V Mask:shape"},
            gives={"text_embeddings": attrs.evolve(tokens, sees="past")},
            sizes=sizes,
            require=require,
        ),
        "encode": Contract(
            needs={"text_embeddings": tokens, "text_is_valid": "B L:bool"}, gives={"text_tokens": tokens}, sizes=sizes
        ),
    }


@component("standard.bert", role=Role.TEXT_ENCODER, build="medvlp_standard.text_encoders:Bert")
@attrs.frozen(kw_only=True)
class BertSpec(ComponentSpec):
    """A BERT with random weights, built from a transformers config; the defaults are the report branch of MRM."""

    width: int = param(384, help="width of a token", at_least=1)
    layers: int = param(6, help="number of layers", at_least=1)
    heads: int = param(6, help="attention heads; must divide width", at_least=1)
    ffn_width: int | None = param(None, help="width inside the feed-forward part; null = 4 * width", at_least=1)
    dropout: float = param(0.1, help="dropout in training, of hidden states and attention", at_least=0, below=1)
    max_positions: int | None = param(None, help="longest text, tokens; null = the tokenizer's max_length", at_least=1)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Heads must divide the width."""
        if self.width % self.heads:
            choices = ", ".join(str(heads) for heads in range(1, min(self.width, 32) + 1) if self.width % heads == 0)
            yield "heads", f"{self.heads} heads must divide the width, {self.width}", f"heads that do: {choices}"

    def calls(self) -> dict[str, Contract]:
        """Token ids to embeddings, and these to contextual tokens of the given width."""
        require = (AtLeast(self.max_positions, "L", field="max_positions"),) if self.max_positions else ()
        return _text_calls(self.width, require)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Micro models, with and without a length of their own."""
        return cls(width=16, layers=1, heads=2), cls(width=24, layers=2, heads=3, ffn_width=32, dropout=0.0, max_positions=64)


@component("standard.hf_text", role=Role.TEXT_ENCODER, build="medvlp_standard.text_encoders:HfText")
@attrs.frozen(kw_only=True)
class HfTextSpec(ComponentSpec):
    """Any BERT-like model of transformers (BERT, RoBERTa, DistilBERT, ELECTRA ...), from a local folder or by hub name.

    With pretrained weights use the tokenizer they were trained with: ``standard.hf_tokenizer`` with the same ``model``.
    """

    model: str = param(help="local folder with config.json (and weights), or a hub name")
    pretrained: bool = param(True, help="load the weights; false = random weights, table sized for the recipe's tokenizer")

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """A path must be a folder with a config.json. Hub names are looked up when the model is built."""
        if is_path(self.model):
            folder = local_folder(self.model)
            if folder is None or not (folder / "config.json").is_file():
                what = "there is no such folder" if folder is None else "the folder has no config.json"
                hint = "save a model there with save_pretrained, or give a hub name such as emilyalsentzer/Bio_ClinicalBERT"
                yield "model", f"model={self.model!r}: {what}", hint

    def calls(self) -> dict[str, Contract]:
        """Token ids to embeddings, and these to contextual tokens; the width is read from config.json, else a free symbol."""
        facts = text_facts(self.model)
        require: list[Constraint] = []
        if facts.positions is not None:
            require.append(AtLeast(facts.positions, "L", field="model", what="the longest text of the model"))
        if facts.vocabulary is not None and self.pretrained:
            require.append(AtLeast(facts.vocabulary, "V", field="model", what="the vocabulary of the model"))
        return _text_calls(facts.width if facts.width is not None else "Dt", tuple(require))

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two micro configs that lie in this package, built with random weights."""
        folder = Path(__file__).parent.parent / "example_models"
        return tuple(cls(model=str(folder / name), pretrained=False) for name in ("bert", "distilbert"))


SPECS: tuple[type[ComponentSpec], ...] = (BertSpec, HfTextSpec)
