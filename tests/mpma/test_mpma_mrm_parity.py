"""Without memory and alignment, with pooled addition in front of the text layers, MPMA is MRM: both losses are equal.

MRM is written out here from its description (Zhou et al., Masked Record Modeling, ICLR 2023), on bare weights and with none of
medvlp's functions. Only the numbers in the weights and the choice of what is masked are shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core.model.build import build_model
from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.plan import ModelPlan

AS_MRM = """
model:
  fusion: {memory: none, fuse: pooled_add, position: early}
  alignments: null
  decoders:
    report: {positions: all}
evaluators: null
"""
HEADS, SIDE, MASK_ID = 2, 4, 3


class Mrm:
    """Masked record modelling on a dictionary of weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_is_valid: Tensor | None = None) -> Tensor:
        heads = []
        for q_h, k_h, v_h in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1), strict=True):
            scores = q_h @ k_h.transpose(1, 2) / math.sqrt(q_h.shape[-1])
            if key_is_valid is not None:
                scores = scores + torch.where(key_is_valid, 0.0, float("-inf"))[:, None, :]
            heads.append(scores.softmax(-1) @ v_h)
        return torch.cat(heads, -1)

    # ---------------------------------------------------------------------------------------------------------------- image

    def positions(self, width: int) -> Tensor:
        """Class token: zeros. Patch (row, column): sine and cosine of the column, then of the row."""
        table = torch.zeros(1 + SIDE * SIDE, width)
        for row in range(SIDE):
            for column in range(SIDE):
                angles = [[p / 10000 ** (i / (width / 4)) for i in range(width // 4)] for p in (column, row)]
                parts = [f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis]
                table[1 + row * SIDE + column] = torch.tensor(parts)
        return table.double()

    def encode(self, image: Tensor, shuffle: Tensor, visible: int) -> Tensor:
        """ViT on the class token and the visible patches; all of its tokens."""
        kernel = self.weights["patch.weight"]
        patches = F.unfold(image, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
        tokens = patches @ kernel.flatten(1).T + self.weights["patch.bias"]
        positions = self.positions(tokens.shape[-1])
        tokens = tokens + positions[1:]
        kept = torch.stack([row[order[:visible]] for row, order in zip(tokens, shuffle, strict=True)])
        x = torch.cat([(self.weights["cls"] + positions[:1]).expand(len(image), -1, -1), kept], 1)
        for layer in ("encoder.0", "encoder.1"):
            q, k, v = self.linear(self.norm(x, f"{layer}.norm1", 1e-6), f"{layer}.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(q, k, v), f"{layer}.proj")
            x = x + self.linear(F.gelu(self.linear(self.norm(x, f"{layer}.norm2", 1e-6), f"{layer}.fc1")), f"{layer}.fc2")
        return self.norm(x, "encoder.norm", 1e-6)

    def image_loss(self, latent: Tensor, image_target: Tensor, shuffle: Tensor, is_masked: Tensor) -> Tensor:
        x = self.linear(latent, "decoder.embed")
        masked = self.weights["decoder.mask"].expand(len(x), SIDE * SIDE + 1 - x.shape[1], -1)
        shuffled, inverse = torch.cat([x[:, 1:], masked], 1), shuffle.argsort(dim=1)
        patches = torch.stack([row[order] for row, order in zip(shuffled, inverse, strict=True)])
        x = torch.cat([x[:, :1], patches], 1) + self.positions(x.shape[-1])
        for layer in ("decoder.0", "decoder.1"):
            normed = self.norm(x, f"{layer}.norm1", 1e-6)
            q, k, v = (self.linear(normed, f"{layer}.{name}") for name in "qkv")
            x = x + self.linear(self.attend(q, k, v), f"{layer}.proj")
            x = x + self.linear(F.gelu(self.linear(self.norm(x, f"{layer}.norm2", 1e-6), f"{layer}.fc1")), f"{layer}.fc2")
        predicted = self.linear(self.norm(x, "decoder.norm", 1e-6), "decoder.pixels")[:, 1:]
        cell, total = image_target.shape[-1] // SIDE, torch.zeros(()).double()
        for b, n in is_masked.nonzero().tolist():
            row, column = n // SIDE * cell, n % SIDE * cell
            target = image_target[b, :, row : row + cell, column : column + cell].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            total = total + (predicted[b, n] - target).square().mean()
        return total / is_masked.sum()

    # --------------------------------------------------------------------------------------------------------------- report

    def report_loss(self, latent: Tensor, token_ids: Tensor, is_masked: Tensor, is_valid: Tensor) -> Tensor:
        masked_ids = torch.where(is_masked, MASK_ID, token_ids)
        x = self.weights["words"][masked_ids] + self.weights["places"][: token_ids.shape[1]] + self.weights["types"][0]
        x = self.norm(x, "embedding_norm", 1e-12)
        x = x + self.linear(latent[:, 1:], "to_text").mean(1, keepdim=True)  # every position, padding too
        for layer in ("bert.0", "bert.1"):
            q, k, v = (self.linear(x, f"{layer}.{name}") for name in "qkv")
            x = self.norm(x + self.linear(self.attend(q, k, v, is_valid), f"{layer}.proj"), f"{layer}.norm1", 1e-12)
            x = self.norm(x + self.linear(F.gelu(self.linear(x, f"{layer}.fc1")), f"{layer}.fc2"), f"{layer}.norm2", 1e-12)
        logits = self.linear(self.norm(F.gelu(self.linear(x, "head.dense")), "head.norm", 1e-12), "head.words")
        # The released code gives the full ids as labels and ignores -100 only: all positions count.
        return F.cross_entropy(logits.flatten(0, 1), token_ids.flatten())

    def losses(self, batch: Batch, image_is_masked: Tensor, text_is_masked: Tensor) -> tuple[Tensor, Tensor]:
        visible = int((~image_is_masked[0]).sum())
        shuffle = image_is_masked.int().argsort(dim=1, stable=True)
        latent = self.encode(batch["image"], shuffle, visible)
        image = self.image_loss(latent, batch["image_target"], shuffle, image_is_masked)
        return image, self.report_loss(latent, batch["token_ids"], text_is_masked, batch["text_is_valid"])


NAMES = {
    "patch": "image_encoder.vit.patch_embed.proj",
    "encoder.norm": "image_encoder.vit.norm",
    "decoder.embed": "decoders.image.embed",
    "decoder.norm": "decoders.image.norm",
    "decoder.pixels": "decoders.image.to_pixels",
    "embedding_norm": "text_encoder.bert.embeddings.LayerNorm",
    "to_text": "fusion.pooled",
    "head.dense": "decoders.report.transform.0",
    "head.norm": "decoders.report.transform.2",
    "head.words": "decoders.report.to_words",
}
VIT_LAYER = {"norm1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
DECODER_LAYER = {
    "norm1": "attention_norm",
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
    "proj": "attention.output",
    "norm2": "feed_forward_norm",
    "fc1": "feed_forward.layers.0",
    "fc2": "feed_forward.layers.3",
}
BERT_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
TENSORS = {
    "cls": "image_encoder.vit.cls_token",
    "decoder.mask": "decoders.image.mask_token",
    "words": "text_encoder.bert.embeddings.word_embeddings.weight",
    "places": "text_encoder.bert.embeddings.position_embeddings.weight",
    "types": "text_encoder.bert.embeddings.token_type_embeddings.weight",
}


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's parameters under MRM's names; none may be left over."""
    names = dict(NAMES)
    for n in (0, 1):
        names |= {f"encoder.{n}.{own}": f"image_encoder.vit.blocks.{n}.{other}" for own, other in VIT_LAYER.items()}
        names |= {f"decoder.{n}.{own}": f"decoders.image.blocks.{n}.{other}" for own, other in DECODER_LAYER.items()}
        names |= {f"bert.{n}.{own}": f"text_encoder.bert.layers.encoder.layer.{n}.{other}" for own, other in BERT_LAYER.items()}
    tensors = TENSORS | {f"{own}.{end}": f"{other}.{end}" for own, other in names.items() for end in ("weight", "bias")}
    state = dict(model.named_parameters())
    assert set(state) - set(tensors.values()) == {"image_encoder.vit.pos_embed"}, "fixed positions are computed, not copied"
    return {own: state[other] for own, other in tensors.items()}


def random_model(plan: ModelPlan, seed: int) -> ComposedModel:
    """The planned model in float64; random numbers replace the initial zeros and ones, so that every bias and norm counts."""
    model = build_model(plan, seed=seed).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_mpma_without_its_own_parts_is_mrm(plan_of: Callable[[str], ModelPlan], batch: Batch, seed: int) -> None:
    model = random_model(plan_of(AS_MRM), seed)
    out = model(batch)
    assert set(out.losses) == {"image.reconstruction", "report.mlm"}
    image_is_masked, text_is_masked = out.ports["image_is_masked@masked"], out.ports["text_is_masked@masked"]
    assert int((~image_is_masked).sum()) == 3 * 4, "4 of 16 patches stay visible, as 49 of 196"
    image, report = Mrm(weights_of(model)).losses(batch, image_is_masked, text_is_masked)
    torch.testing.assert_close(out.losses["image.reconstruction"], image, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.losses["report.mlm"], report, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out.loss, image + report, rtol=1e-10, atol=1e-12)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours, theirs = torch.autograd.grad(out.loss, trained), torch.autograd.grad(image + report, trained)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("old", "new"), [("position: early", "position: late"), ("positions: all", "positions: masked")])
def test_each_choice_is_needed_for_the_equality(plan_of: Callable[[str], ModelPlan], batch: Batch, old: str, new: str) -> None:
    model = random_model(plan_of(AS_MRM.replace(old, new)), 0)
    out = model(batch)
    image_is_masked, text_is_masked = out.ports["image_is_masked@masked"], out.ports["text_is_masked@masked"]
    image, report = Mrm(weights_of(model)).losses(batch, image_is_masked, text_is_masked)
    torch.testing.assert_close(out.losses["image.reconstruction"], image, rtol=1e-10, atol=1e-12)
    assert not torch.isclose(out.losses["report.mlm"], report, rtol=1e-3)
