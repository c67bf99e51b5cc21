"""A bundle ``ct`` for contrasts over a whole step: masks that a pair decides, encoders with dropout and batch norm, a queue."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from medvlp_core import ComponentSpec, Contract, Dims, Role, TensorSpec, component, param
from medvlp_core.data.order import DataOrder, Share
from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_model
from medvlp_core.nn import Alignment, Batch, ImageEncoder, ImageFeatures, Masking, MaskPlan, Output, TextEncoder
from medvlp_core.nn.contrastive import symmetric_info_nce
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost, load_plugins
from medvlp_core.recipe.load import parse_yaml
from medvlp_core.runtime.distributed import world_size
from medvlp_core.testing.stub_components import specs as stubs
from medvlp_core.training.loop import train
from medvlp_core.training.parallel import for_processes, prepare
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest

CPU = torch.device("cpu")
WIDTH, LENGTH = 6, 7


class Small(ComponentSpec):
    """Two equal examples are enough here."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls())


@component("ct.masking", role=Role.MASKING, build="contrast_bundle:GivenMasking")
@attrs.frozen(kw_only=True)
class MaskingSpec(Small):
    """Masks that depend on the pair alone."""

    draws: bool = param(False, help="mask at random instead")

    def contract(self) -> Contract:
        return Contract(
            needs={"token_ids": "B L:int", "word_ids": "B L:int"},
            gives={"image_is_masked": "B 4:bool", "text_is_masked": "B L:bool", "token_ids": "B L:int"},
        )


class GivenMasking(Masking):
    """Two of four patches, and every word whose id can be divided by three."""

    def __init__(self, spec: MaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec

    def forward(self, token_ids: Tensor, word_ids: Tensor) -> MaskPlan:
        first = torch.randint(0, 4, (len(token_ids),)) if self.spec.draws else token_ids[:, 1] % 4
        is_masked = torch.zeros(len(token_ids), 4, dtype=torch.bool)
        rows = torch.arange(len(token_ids))
        is_masked[rows, first] = is_masked[rows, (first + 1) % 4] = True
        text_is_masked = (word_ids >= 0) & (token_ids % 3 == 0)
        return MaskPlan(is_masked, text_is_masked, token_ids.masked_fill(text_is_masked, stubs.SPECIALS["[MASK]"]))


@component("ct.images", role=Role.IMAGE_ENCODER, build="contrast_bundle:Images")
@attrs.frozen(kw_only=True)
class ImagesSpec(Small):
    """Four patches, of which the masked ones are dropped."""

    dropout: float = param(0.0, help="share of dropped features", at_least=0, below=1)
    has_batch_norm: bool = param(False, help="normalise over the batch")

    def contract(self) -> Contract:
        return Contract(
            needs={"image": "B 1 4 4", "image_is_masked": "B 4:bool?"},
            gives={
                "image_grid": "2 2:shape",
                "image_tokens": f"B 4 {WIDTH}",
                "visible": TensorSpec.parse(f"B Nv {WIDTH}", port="image_tokens", layout="dropped", when="image_is_masked"),
                "image_prefix": f"B 0 {WIDTH}",
            },
        )


class Layer(nn.Module):
    """A layer with parts, as encoders have them."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.linear, self.dropout = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.dropout(self.linear(self.norm(x)).tanh())
        return result


class Images(ImageEncoder):
    """``layers(W patch + p)``."""

    def __init__(self, spec: ImagesSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.batch_norm = nn.BatchNorm2d(1) if spec.has_batch_norm else nn.Identity()
        self.embed, self.places = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(4, WIDTH))
        self.blocks = nn.ModuleList(Layer(spec.dropout) for _ in range(2))

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        x = self.embed(self.batch_norm(image).flatten(1, 2)) + self.places
        if image_is_masked is not None:
            x = x[~image_is_masked].unflatten(0, (len(x), -1))
        for block in self.blocks:
            x = block(x)
        return ImageFeatures(image_tokens=x, image_prefix=x[:, :0])


@component("ct.texts", role=Role.TEXT_ENCODER, build="contrast_bundle:Texts")
@attrs.frozen(kw_only=True)
class TextsSpec(Small):
    """Words and their mean."""

    dropout: float = param(0.0, help="share of dropped features", at_least=0, below=1)

    def calls(self) -> dict[str, Contract]:
        tokens = f"B L {WIDTH}"
        ids = {"token_ids": "B L:int", "vocabulary": "V Mask:shape"}
        return {
            "embed": Contract(needs=ids, gives={"text_embeddings": tokens}, sizes=("V",)),
            "encode": Contract(needs={"text_embeddings": tokens, "text_is_valid": "B L:bool"}, gives={"text_tokens": tokens}),
        }


class Texts(TextEncoder):
    """``layers(e + mean e)``."""

    def __init__(self, spec: TextsSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], WIDTH)
        self.blocks = nn.ModuleList(Layer(spec.dropout) for _ in range(2))

    def embed(self, token_ids: Tensor) -> Tensor:
        found: Tensor = self.words(token_ids)
        return found

    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Tensor:
        is_valid = text_is_valid.unsqueeze(-1)
        x = text_embeddings + (text_embeddings * is_valid).sum(dim=1, keepdim=True) / is_valid.sum(dim=1, keepdim=True)
        for block in self.blocks:
            x = block(x)
        return x


@component("ct.nce", role=Role.ALIGNMENT, build="contrast_bundle:Queued")
@attrs.frozen(kw_only=True)
class QueuedSpec(Small):
    """A contrast that keeps its vectors, and gives a score."""

    def calls(self) -> dict[str, Contract]:
        tokens = {"image_tokens": f"B S {WIDTH}", "text_tokens": f"B L {WIDTH}", "text_is_valid": "B L:bool"}
        return {
            "forward": Contract(
                needs=tokens,
                gives={"score": "B", "vectors": f"B {WIDTH}"},
                losses=("global",),
                mixes_rows=True,
                after={"vectors": f"T {WIDTH}", "image_tokens": f"T S {WIDTH}"},
            )
        }


class Queued(Alignment):
    """InfoNCE of means."""

    def __init__(self, spec: QueuedSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.head = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("last", torch.zeros(2, WIDTH))
        self.handed: list[tuple[Tensor, Tensor]] = []

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        vectors = nn.functional.normalize(self.head(image_tokens.mean(dim=1)), dim=-1)
        text = nn.functional.normalize(text_tokens[:, 0], dim=-1)
        ports = {"vectors": vectors, "score": (vectors * text).sum(dim=-1)}
        return Output(ports, {"global": symmetric_info_nce(vectors, text, 5.0)})

    def after_step(self, vectors: Tensor, image_tokens: Tensor) -> None:
        self.handed.append((vectors.clone(), image_tokens.clone()))
        self.last.copy_(vectors[-2:])


@component("ct.scores", role=Role.DECODER, build="contrast_bundle:Queued")
@attrs.frozen(kw_only=True)
class ScoresSpec(Small):
    """Wants what a contrast gives."""

    def contract(self) -> Contract:
        return Contract(needs={"score": "B"}, losses=("fit",))


@component("ct.middle", role=Role.PART, build="contrast_bundle:Queued")
@attrs.frozen(kw_only=True)
class MiddleSpec(Small):
    """One vector for a whole batch."""

    def contract(self) -> Contract:
        return Contract(needs={"image_tokens": f"B S {WIDTH}"}, gives={"middle": f"{WIDTH}"})


@component("ct.picky", role=Role.ALIGNMENT, build="contrast_bundle:Queued")
@attrs.frozen(kw_only=True)
class PickySpec(Small):
    """A contrast on what no step can put together."""

    kind: str = param("ragged", help="what it takes", one_of=("ragged", "no rows"))

    def contract(self) -> Contract:
        needs = {"text_tokens": f"B L {WIDTH}"} if self.kind == "ragged" else {"image_tokens": f"B S {WIDTH}", "middle": f"{WIDTH}"}
        return Contract(needs=needs, losses=("global",), mixes_rows=True)


SPECS: list[type[ComponentSpec]] = [MaskingSpec, ImagesSpec, TextsSpec, QueuedSpec, ScoresSpec, MiddleSpec, PickySpec]


def host() -> PluginHost:
    """The installed bundles, the stub components of the kit, and ``ct``."""
    found = load_plugins()
    for kind in (*stubs.SPECS, *SPECS):
        if kind.declaration.name not in found.components:
            found.components.add(kind)
    return found


RECIPE = """\
medvlp: 1
tokenizer: {{use: kit.words, size: 20, max_length: 7}}
model:
  masking: {{use: ct.masking{masking}}}
  image_encoder: {{use: ct.images{images}}}
  text_encoder: {{use: ct.texts{texts}}}
  alignments:
    a: {{{alignment}}}
  decoders:
    pixels: {{use: kit.image_decoder, width: 4}}
losses: {{a: {{global: 0.7}}, pixels: {{reconstruction: {{from: 0.5, to: 1, begin: 0.1, end: 0.8}}}}}}
train: {{steps: 3, batch_size: 8, drop_last: false, learning_rate: 0.01, max_grad_norm: 0.5, ema_decay: 0.9{train}}}
"""


def recipe(alignment: str, train: str = "", *, masking: str = "", images: str = "", texts: str = "") -> str:
    """A recipe with one alignment; further settings begin with a comma."""
    return RECIPE.format(alignment=alignment, train=train, masking=masking, images=images, texts=texts)


def read(text: str) -> tuple[ModelPlan | None, Diagnostics]:
    """Plan a recipe."""
    diagnostics = Diagnostics()
    node = parse_yaml(text, file="recipe.yaml", diagnostics=diagnostics)
    assert node is not None, [str(one) for one in diagnostics]
    return compose(node, host(), diagnostics), diagnostics


def plan_of(text: str) -> ModelPlan:
    """The plan of a recipe without errors."""
    plan, diagnostics = read(text)
    assert plan is not None, "\n".join(map(str, diagnostics))
    return plan


class Pairs:
    """13 pairs: steps of 8 and 5, which four micro-batches do not share evenly. Texts have 3 to 7 tokens, and no padding at all."""

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(13, 1, 4, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(4, 20, (13, LENGTH), generator=generator)
    lengths = 3 + torch.arange(13) * 3 % 5
    bad_rows: tuple[int, ...] = ()

    def records(self, split: str) -> list[Any]:
        return [SimpleNamespace(id=f"study-{index}") for index in range(len(self.images))]

    def batch(self, rows: list[int]) -> Batch:
        index = torch.tensor(rows)
        is_valid = torch.arange(LENGTH) < self.lengths[index].unsqueeze(1)
        words = ((torch.arange(LENGTH) - 1).div(2, rounding_mode="floor")).expand(len(rows), -1).masked_fill(~is_valid, -1)
        ids = self.ids[index].masked_fill(~is_valid, 0)
        ids[:, 0] = stubs.SPECIALS["[CLS]"]
        image = self.images[index].clone()
        image[[row in self.bad_rows for row in rows]] = float("nan")
        longest = int(self.lengths[index].max())
        texts = {"token_ids": ids, "text_is_valid": is_valid, "word_ids": words}
        return {"image": image, **{name: one[:, :longest].clone() for name, one in texts.items()}, "record_index": index}

    def training_batches(self, order: DataOrder, steps: range, *, share: Share, **_: Any) -> Iterator[Batch]:
        for step in steps:
            for part in share.of(order.pairs(step)):
                yield self.batch([draw.row for draw in part])


@attrs.define
class Run:
    """A run of a recipe, in float64, and what it told. ``gradients`` are those of each step, clipped."""

    plan: ModelPlan
    state: TrainState
    forward: nn.Module
    pairs: Pairs = attrs.field(factory=Pairs)
    events: list[Any] = attrs.field(factory=list)
    gradients: list[dict[str, Tensor]] = attrs.field(factory=list)

    @classmethod
    def of(cls, text: str, dtype: torch.dtype = torch.float64) -> Run:
        """The run before its first step."""
        from medvlp_core.model.build import build_tokenizer

        plan = plan_of(text)
        build_tokenizer(plan)
        model = build_model(plan, seed=3).to(dtype)
        prepare(model, plan.train)
        forward = for_processes(model, plan.train, CPU, world_size())
        return cls(plan, TrainState.fresh(model, plan.train, CPU), forward)

    def train(self, stop_after: int | None = None) -> Run:
        """Train to the end, or until some steps are done."""

        stop = StopRequest()

        def keep(*_: Any) -> None:
            named = self.state.model.named_parameters()
            self.gradients.append({name: whole(one.grad) for name, one in named if one.grad is not None})

        def notify(event: Any) -> None:
            self.events.append(event)
            if stop_after is not None and self.state.step + 1 == stop_after:
                stop.signal = "SIGINT"  # taken note of in the next step

        if stop_after == 1:
            stop.signal = "SIGINT"
        handle = register_optimizer_step_pre_hook(keep)
        try:
            train(
                self.state,
                self.pairs,  # type: ignore[arg-type]
                self.plan.train,
                forward=self.forward,
                device=CPU,
                notify=notify,
                save=lambda _: None,
                stop=stop,
            )
        finally:
            handle.remove()
        return self

    @property
    def losses(self) -> list[dict[str, float]]:
        """Of each step: the weighted sum, and each term."""
        return [{"total": getattr(event, "total", 0.0), **event.losses} for event in self.events if hasattr(event, "losses")]

    @property
    def weights(self) -> dict[str, Tensor]:
        """After the last step, buffers too."""
        return {name: whole(one) for name, one in self.state.model.state_dict().items()}


def whole(tensor: Tensor) -> Tensor:
    """A copy with all its shards."""
    tensor = tensor.detach()
    return tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor.clone()
