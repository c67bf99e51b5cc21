"""Toy parts for generation and pair scores: a causal text tower, a head for the next word, and heads that score pairs."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from medvlp_core import ComponentSpec, Contract, Dims, Role, TensorSpec, component, param
from medvlp_core.nn import Decoder, Output, Part, TextEncoder, masked_mean, word_loss
from medvlp_core.plugins.host import PluginHost, load_plugins

WIDTH = 16
PAST = f"B L {WIDTH}"


class Toy(ComponentSpec):
    """Two equal examples are enough here."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls())


@component("toy.causal_text", role=Role.TEXT_ENCODER, build="toy_writers:CausalText")
@attrs.frozen(kw_only=True)
class CausalTextSpec(Toy):
    """A text tower in which every token is the mean of those up to it."""

    sees: str = param("past", help="what it promises", one_of=("past", "all"))

    def calls(self) -> dict[str, Contract]:
        given = TensorSpec.parse(PAST, sees="past")
        needs = {"token_ids": "B L:int", "vocabulary": "V Mask:shape"}
        return {
            "embed": Contract(needs=needs, gives={"text_embeddings": given}, sizes=("V",)),
            "encode": Contract(
                needs={"text_embeddings": PAST, "text_is_valid": "B L:bool"},
                gives={"text_tokens": given if self.sees == "past" else PAST},
            ),
        }


class CausalText(TextEncoder):
    """``t_l = tanh(W mean(e_1 .. e_l))``."""

    def __init__(self, spec: CausalTextSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def embed(self, token_ids: Tensor) -> Tensor:
        found: Tensor = self.words(token_ids)
        return found

    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Tensor:
        count = torch.arange(1, text_embeddings.shape[1] + 1, device=text_embeddings.device)
        found: Tensor = torch.tanh(self.layer(text_embeddings.cumsum(dim=1) / count[:, None]))
        return found


@component("toy.next_word", role=Role.DECODER, build="toy_writers:NextWord")
@attrs.frozen(kw_only=True)
class NextWordSpec(Toy):
    """A head for the next word on a causal text tower and the mean patch."""

    asks_for_words: bool = param(False, help="take word_ids too, which nobody knows while a text is written")

    def contract(self) -> Contract:
        needs = {"text_tokens": "B L Dt", "image_tokens": "B S Di", "token_ids": "B L:int", "text_is_valid": "B L:bool"}
        more = {"word_ids": "B L:int"} if self.asks_for_words else {}
        return Contract(
            needs={**needs, **more, "vocabulary": "V Mask:shape"},
            gives={"next_word_logits": TensorSpec.parse("B L V", sees="past")},
            sizes=("Dt", "Di", "V"),
            losses=("words",),
        )


class NextWord(Decoder):
    """``W [t_l ; mean v]``."""

    def __init__(self, spec: NextWordSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.layer = nn.Linear(dims["Dt"] + dims["Di"], dims["V"])

    def forward(
        self,
        text_tokens: Tensor,
        image_tokens: Tensor,
        token_ids: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor | None = None,
    ) -> Output:
        image = image_tokens.mean(dim=1, keepdim=True).expand(-1, text_tokens.shape[1], -1)
        logits = self.layer(torch.cat([text_tokens, image], dim=-1))
        is_scored = text_is_valid[:, 1:]
        loss = word_loss(logits[:, :-1][is_scored], token_ids[:, 1:][is_scored])
        return Output(ports={"next_word_logits": logits}, losses={"words": loss})


@component("toy.match", role=Role.PART, build="toy_writers:Match")
@attrs.frozen(kw_only=True)
class MatchSpec(Toy):
    """Scores a pair from its fused text tokens."""

    mixes: bool = param(False, help="subtract the mean of the batch")
    from_fused: bool = param(True, help="read fused tokens; else those of the text alone")

    def contract(self) -> Contract:
        port = "fused_text_tokens" if self.from_fused else "text_tokens"
        needs = {"tokens": TensorSpec.parse("B L D", port=port), "text_is_valid": TensorSpec.parse("B L:bool")}
        return Contract(needs=needs, gives={"match_score": "B"}, sizes=("D",), mixes_rows=self.mixes)


class Match(Part):
    """``w mean(F) + b``."""

    def __init__(self, spec: MatchSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.mixes = spec.mixes
        self.layer = nn.Linear(dims["D"], 1)

    def forward(self, tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        scores: Tensor = self.layer(masked_mean(tokens, text_is_valid))[:, 0]
        return scores - scores.mean() if self.mixes else scores


def writers_host() -> PluginHost:
    """The installed bundles and the parts here."""
    host = load_plugins()
    for kind in (CausalTextSpec, NextWordSpec, MatchSpec):
        host.components._specs.pop(kind.declaration.name, None)
        host.components.add(kind)
    return host


WRITER = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [nih]}
tokenizer: {use: standard.wordpiece, vocab_size: 300, max_length: 32, end_of_text: true}
model:
  image_encoder:
    {use: standard.timm_vit, model: vit_tiny_patch16_224, image_size: 32, channels: 1, patch_size: 8, width: 32, depth: 1, heads: 2}
  text_encoder: {use: toy.causal_text}
  decoders: {lm: {use: toy.next_word}}
train: {steps: 4, batch_size: 4}
"""
MATCHER = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [nih]}
tokenizer: {use: standard.wordpiece, vocab_size: 300, max_length: 32}
model:
  masking: {use: standard.random}
  image_encoder:
    {use: standard.timm_vit, model: vit_tiny_patch16_224, image_size: 32, channels: 1, patch_size: 8, width: 32, depth: 1, heads: 2}
  text_encoder: {use: standard.bert, width: 32, layers: 1, heads: 2}
  fusion: {use: standard.cross_attention, layers: 1, heads: 2}
  parts: {match: {use: toy.match}}
  decoders: {report: {use: standard.mlm_head}}
train: {steps: 4, batch_size: 4}
"""
