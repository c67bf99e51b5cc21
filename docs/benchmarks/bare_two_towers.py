"""A contrastive model of two towers, trained by medvlp and by code as somebody writes it without medvlp: is it as fast?

    python docs/benchmarks/bare_two_towers.py --rounds 12

``medvlp bench train`` compares two loops over medvlp's own modules and data set, so it cannot see what these cost. Here the rival
is bare: timm's and transformers' models, a Dataset over the JPEG files with Pillow, a ``tokenizers`` file, torch's DataLoader and
AdamW. All that it does stands above the line "the comparison"; below it medvlp comes in.

Given to both: the first weights, the vocabulary, which pairs a batch holds. Then images and token ids of three batches must be
equal, and the losses of three steps. Both crop at the centre, hide nothing and drop nothing out: what random crops, masks and
dropout cost is not compared. medvlp has its metrics file and its display, as in a real run; the rival reports nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import tokenizers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertModel

if TYPE_CHECKING:
    from medvlp_bench.rival.benchmark import TrainBenchmark

    from medvlp_core.model import ComposedModel

VIT, IMAGE_SIZE, CHANNELS, DEPTH, IMAGE_WIDTH = "vit_tiny_patch16_224", 128, 1, 4, 192
VOCABULARY, LENGTH, TEXT_WIDTH, LAYERS, HEADS = 2000, 64, 128, 2, 2
SHARED_WIDTH, TEMPERATURE, LARGEST_SCALE = 128, 0.07, 100.0
MEAN, STD = 0.4978, 0.2449
BATCH, LEARNING_RATE, WARM_UP, WEIGHT_DECAY, BETAS, MAX_GRAD_NORM = 32, 5e-4, 0.1, 0.05, (0.9, 0.95), 1.0

# ------------------------------------------------------------------------------------------------------------------ by hand


class Pairs(Dataset[tuple[Tensor, str]]):
    """The training pairs of a folder with a ``manifest.jsonl``: a normalised image (C, S, S) and its text."""

    def __init__(self, folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
        self.pairs = [(folder / row["image"], row["text"]) for row in rows if row["split"] == "train" and row["text"].strip()]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """Read one pair."""
        path, text = self.pairs[index]
        with Image.open(path) as image:
            image.draft("L", (IMAGE_SIZE, IMAGE_SIZE))  # a JPEG need not be decoded at its full size
            gray = image.convert("L")
        side = min(gray.size)
        left, top = (gray.width - side) / 2, (gray.height - side) / 2
        box = (left, top, left + side, top + side)
        gray = gray.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(gray, dtype=np.float32)) / 255
        return ((pixels - MEAN) / STD).expand(CHANNELS, -1, -1), text


class Collate:
    """Images (B, C, S, S), token ids and their validity (B, L)."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, pairs: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Make a batch."""
        images, texts = zip(*pairs, strict=True)
        found = self.tokenizer.encode_batch(list(texts))
        return torch.stack(images), torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])


class TwoTowers(nn.Module):
    """A vision transformer, a BERT, a linear map from each to a shared space, a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image = timm.create_model(
            VIT, img_size=IMAGE_SIZE, in_chans=CHANNELS, depth=DEPTH, embed_dim=IMAGE_WIDTH, num_classes=0, global_pool=""
        )
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=TEXT_WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * TEXT_WIDTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=LENGTH,
            type_vocab_size=1,
            pad_token_id=None,
        )
        self.text = BertModel(config, add_pooling_layer=False)
        self.image_projection = nn.Linear(IMAGE_WIDTH, SHARED_WIDTH, bias=False)
        self.text_projection = nn.Linear(TEXT_WIDTH, SHARED_WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def forward(self, image: Tensor, token_ids: Tensor, is_valid: Tensor) -> Tensor:
        """The contrastive loss of a batch, as in CLIP."""
        patches = self.image.forward_features(image)[:, 1:]
        words = self.text(input_ids=token_ids, attention_mask=is_valid).last_hidden_state
        images = F.normalize(self.image_projection(patches.mean(dim=1)), dim=-1)
        texts = F.normalize(self.text_projection(words[:, 0]), dim=-1)
        logits = self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp() * images @ texts.t()
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW; matrices decay, embeddings and all the rest do not."""
    decays: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and name.endswith("weight") and "embeddings" not in name
        (decays if is_matrix else rest).append(parameter)
    groups = [{"params": decays, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)


def learning_rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine."""
    warm_up = round(WARM_UP * steps)
    if step < warm_up:
        return LEARNING_RATE * (step + 1) / warm_up
    return LEARNING_RATE * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def train_by_hand(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any],
    device: torch.device,
    on_step: Callable[[float], None],
) -> list[float]:
    """Train on all batches; the losses. ``on_step`` gets the seconds for which a step waited for its batch."""
    model.train()
    batches, steps, losses = iter(loader), len(loader), []
    for step in range(steps):
        start = time.perf_counter()
        image, token_ids, is_valid = next(batches)
        data_seconds = time.perf_counter() - start
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss = model(*(one.to(device, non_blocking=True) for one in (image, token_ids, is_valid)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        losses.append(loss.detach())
        on_step(data_seconds)
    return torch.stack(losses).tolist()


# ------------------------------------------------------------------------------------------------------------ the comparison

CHECKED_STEPS, TOLERANCE = 3, 1e-4

RECIPE = f"""\
medvlp: 1
data: {{use: open_cxr.pairs}}
tokenizer: {{use: standard.wordpiece, vocab_size: {VOCABULARY}, max_length: {LENGTH}}}
model:
  image_encoder:
    {{use: standard.timm_vit, model: {VIT}, image_size: {IMAGE_SIZE}, channels: {CHANNELS}, depth: {DEPTH}, width: {IMAGE_WIDTH}}}
  text_encoder: {{use: standard.bert, width: {TEXT_WIDTH}, layers: {LAYERS}, heads: {HEADS}, dropout: 0.0}}
  alignments:
    clip: {{use: standard.info_nce, dim: {SHARED_WIDTH}, temperature: {TEMPERATURE}}}
inputs: {{mean: {MEAN}, std: {STD}, crop_scale: 1.0}}
train:
  steps: 3
  batch_size: {BATCH}
  learning_rate: {LEARNING_RATE:.5f}
  warmup_fraction: {WARM_UP}
  weight_decay: {WEIGHT_DECAY}
  betas: [{BETAS[0]}, {BETAS[1]}]
  max_grad_norm: {MAX_GRAD_NORM}
"""


def copy_weights(model: ComposedModel, bare: TwoTowers) -> None:
    """medvlp's weights into the bare model, under the libraries' own names."""
    parts: list[Any] = [model.get_submodule(name) for name in ("image_encoder", "text_encoder", "alignments.clip")]
    image, text, clip = parts
    bare.image.load_state_dict({name: image.state_dict()[own] for name, own in image.library_names().items()})
    bare.text.load_state_dict({name: text.state_dict()[own] for name, own in text.library_names().items()})
    bare.image_projection.load_state_dict(clip.heads.image_projection.state_dict())
    bare.text_projection.load_state_dict(clip.heads.text_projection.state_dict())
    bare.log_scale.data.copy_(clip.scale.log_scale.squeeze())


class Rivals:
    """Both, with equal weights and the same pairs in the same batches."""

    def __init__(self, folder: Path, device: torch.device, steps: int) -> None:
        from medvlp_bench.rival.benchmark import TrainBenchmark
        from medvlp_open_cxr.manifest import DATA

        import medvlp_core

        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        built = medvlp_core.build(medvlp_core.plan(folder / "recipe.yaml"), seed=0)
        built.pipeline.tokenizer.save(folder)
        self.device, self.steps = device, steps
        self.medvlp: TrainBenchmark = TrainBenchmark.over(built, device, steps=steps, folder=folder)
        self.bare = TwoTowers().to(device)
        copy_weights(built.model, self.bare)
        self.optimizer = make_optimizer(self.bare)
        self.pairs, self.collate = Pairs(DATA), Collate(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
        # medvlp's loop begins every round with step 0.
        self.rows = [[draw.row for draw in self.medvlp.rival.order.pairs(step)] for step in range(steps)]

    def loader(self, steps: int) -> DataLoader[Any]:
        """The batches of the rival."""
        pinned = self.device.type == "cuda"
        return DataLoader(self.pairs, batch_sampler=self.rows[:steps], collate_fn=self.collate, pin_memory=pinned)

    def check_batches(self) -> bool:
        """Whether images, token ids and validity are equal to the last bit."""
        theirs = self.medvlp.rival.loader(CHECKED_STEPS, is_seeded=True)
        return all(
            torch.equal(one["image"], image)
            and torch.equal(one["token_ids"], ids)
            and torch.equal(one["text_is_valid"], valid.bool())
            for one, (image, ids, valid) in zip(theirs, self.loader(CHECKED_STEPS), strict=True)
        )

    def check_losses(self) -> float:
        """The largest relative difference between the losses of some steps. Both go on with the weights that they then have."""
        from medvlp_core.training import StepDone

        events: list[Any] = []
        self.medvlp.ours([events.append], CHECKED_STEPS)
        ours = [event.total for event in events if isinstance(event, StepDone)]
        bare = train_by_hand(self.bare, self.optimizer, self.loader(CHECKED_STEPS), self.device, lambda data_seconds: None)
        return max(abs(one - other) / one for one, other in zip(ours, bare, strict=True))

    def time(self, rounds: int) -> list[str]:
        """Both in turn; speeds and overhead in words."""
        from medvlp_bench.commands.train import speed_lines
        from medvlp_bench.rival.laps import Lap, Laps, Timing, take_turns

        def ours() -> Lap:
            laps = Laps(self.device)
            self.medvlp.ours([laps], self.steps)
            return laps.lap()

        def bare() -> Lap:
            laps = Laps(self.device)
            train_by_hand(self.bare, self.optimizer, self.loader(self.steps), self.device, laps.end_step)
            return laps.lap()

        left, right = take_turns(rounds, ours, bare)
        return speed_lines(Timing(is_compiled=False, pairs_per_step=BATCH, ours=left, rival=right))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, then measure. 1 if both do not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, the first not counted; 3 or more (default: 6)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of each, in turn (default: 12)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (default: cpu)")
    given = parser.parse_args(arguments)
    if given.steps < CHECKED_STEPS or given.rounds < 1:
        parser.error(f"at least {CHECKED_STEPS} steps and 1 round")
    with TemporaryDirectory() as folder:
        rivals = Rivals(Path(folder), given.device, given.steps)
        if not rivals.check_batches():
            print(f"images or token ids of {CHECKED_STEPS} batches differ: nothing is timed")
            return 1
        print(f"images and token ids of {CHECKED_STEPS} batches are equal to the last bit")
        difference = rivals.check_losses()
        print(f"losses of {CHECKED_STEPS} steps differ by {difference:.1e} at most", flush=True)
        if not difference <= TOLERANCE:
            print(f"that is more than {TOLERANCE:g}: nothing is timed")
            return 1
        print("\n".join(rivals.time(given.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
