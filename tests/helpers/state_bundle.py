"""A bundle ``st`` of components that train in no time, and a loop over random images: for tests of training state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medvlp_core import ComponentSpec, Contract, Dims, Role, component, hookimpl, param
from medvlp_core.data.order import DataOrder, Share
from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_model
from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn import Alignment, Batch, Decoder, ImageEncoder, ImageFeatures, Output, Part
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost
from medvlp_core.plugins.registry import PluginComponents
from medvlp_core.recipe.load import parse_yaml
from medvlp_core.runtime.distributed import world_size
from medvlp_core.training.checkpoint import WEIGHTS, load_state, load_weights, save_checkpoint
from medvlp_core.training.loop import train
from medvlp_core.training.parallel import for_processes, prepare
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest

MEDVLP_INTERFACE = 2
CPU = torch.device("cpu")


class Small(ComponentSpec):
    """Two equal examples are enough here."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls())


@component("st.encoder", role=Role.IMAGE_ENCODER, build="state_bundle:Encoder")
@attrs.frozen(kw_only=True)
class EncoderSpec(Small):
    """Four rows of pixels as tokens, through layers with dropout."""

    width: int = param(4, help="width", at_least=1)
    layers: int = param(2, help="layers", at_least=0)
    dropout: float = param(0.0, help="share of dropped features", at_least=0, below=1)
    has_batch_norm: bool = param(False, help="normalise over the batch first")

    def contract(self) -> Contract:
        return Contract(
            needs={"image": "B 1 4 4"},
            gives={"image_grid": "4 1:shape", "image_tokens": f"B 4 {self.width}", "image_prefix": f"B 0 {self.width}"},
        )


class Layer(nn.Module):
    """A layer with parts, as encoders have them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.linear, self.dropout = nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.dropout(self.linear(self.norm(x)).tanh())
        return result


class Encoder(ImageEncoder):
    """``x = layers(W image)``."""

    def __init__(self, spec: EncoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.batch_norm = nn.BatchNorm2d(1) if spec.has_batch_norm else nn.Identity()
        self.embed = nn.Linear(4, spec.width)
        self.blocks = nn.ModuleList(Layer(spec.width, spec.dropout) for _ in range(spec.layers))

    def forward(self, image: Tensor) -> ImageFeatures:
        x = self.embed(self.batch_norm(image).flatten(1, 2))
        for block in self.blocks:
            x = block(x)
        return ImageFeatures(image_tokens=x, image_prefix=x[:, :0])


@component("st.pool", role=Role.PART, build="state_bundle:Pool")
@attrs.frozen(kw_only=True)
class PoolSpec(Small):
    """A vector of an image."""

    def contract(self) -> Contract:
        return Contract(needs={"image_tokens": "B S D"}, gives={"pooled": "B D"}, sizes=("D",))


class Pool(Part):
    """``W mean(tokens)``."""

    def __init__(self, spec: PoolSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.linear = nn.Linear(dims["D"], dims["D"])

    def forward(self, image_tokens: Tensor) -> Tensor:
        result: Tensor = self.linear(image_tokens.mean(dim=1))
        return result


@component("st.fit", role=Role.DECODER, build="state_bundle:Fit")
@attrs.frozen(kw_only=True)
class FitSpec(Small):
    """Two losses on the tokens of an image; both say which progress they saw."""

    def contract(self) -> Contract:
        return Contract(
            needs={"image_tokens": "B S D", "progress": ":float"},
            gives={"seen": ":float"},
            sizes=("D",),
            losses=("fit", "size"),
        )


class Fit(Decoder):
    """``fit = (1 - sum(W x))^2``, ``size = mean(x^2)``."""

    def __init__(self, spec: FitSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.linear = nn.Linear(dims["D"], 1)

    def forward(self, image_tokens: Tensor, progress: Tensor) -> Output:
        x = self.linear(image_tokens).flatten(1)
        losses = {"fit": (x.sum(dim=1) - 1).square().mean(), "size": image_tokens.square().mean()}
        return Output({"seen": progress}, losses)


@component("st.distil", role=Role.DECODER, build="state_bundle:Distil")
@attrs.frozen(kw_only=True)
class DistilSpec(Small):
    """Distance to the tokens of a teacher."""

    def contract(self) -> Contract:
        return Contract(needs={"image_tokens": "B S D", "teacher_tokens": "B S D"}, sizes=("D",), losses=("distance",))


class Distil(Decoder):
    """``(W x - t)^2``."""

    def __init__(self, spec: DistilSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.linear = nn.Linear(dims["D"], dims["D"])

    def forward(self, image_tokens: Tensor, teacher_tokens: Tensor) -> Output:
        return Output(losses={"distance": (self.linear(image_tokens) - teacher_tokens).square().mean()})


@component("st.queue", role=Role.DECODER, build="state_bundle:Queue")
@attrs.frozen(kw_only=True)
class QueueSpec(Small):
    """A loss against the vectors of earlier steps."""

    length: int = param(12, help="vectors that are kept", at_least=1)
    draws: bool = param(False, help="add noise to what is kept")
    after: str = param("pooled: T D", help="what it says that it gets after a step")
    fault: str = param("", help="what is wrong with it", one_of=("", "raises", "transient", "shape", "lost"))

    def contract(self) -> Contract:
        name, _, row = self.after.partition(": ")
        return Contract(
            needs={"pooled": "B D", "extra": "B D?", "image_tokens": "B S D"},
            gives={"projected": "B D", "norm": ":float"},
            sizes=("D",),
            losses=("far",),
            after={name: row},
        )


class Queue(Decoder):
    """``far = mean((W x . q)^2)`` over the queue q, to which the projected or given rows of every step are added."""

    def __init__(self, spec: QueueSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.linear = nn.Linear(dims["D"], dims["D"])
        self.register_buffer("queue", torch.zeros(spec.length, dims["D"]), persistent=spec.fault != "lost")
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.handed: list[Tensor] = []

    def forward(self, pooled: Tensor, image_tokens: Tensor, extra: Tensor | None = None) -> Output:
        projected = self.linear(pooled)
        far = (1 + projected @ self.queue.T.to(projected.dtype)).square().mean()
        return Output({"projected": projected, "norm": projected.norm()}, {"far": far})

    def after_step(self, **rows: Tensor) -> None:
        (found,) = rows.values()
        self.handed.append(found.clone())
        if self.spec.fault == "raises":
            raise ValueError("the queue is full")
        if self.spec.fault == "shape":
            self.queue = torch.cat([self.queue, found])
            return
        noise = torch.randn_like(found) if self.spec.draws else 0
        self.queue.copy_(torch.cat([found + noise, self.queue])[: self.spec.length])
        self.steps += 1


@component("st.forgetful", role=Role.DECODER, build="state_bundle:Distil")
@attrs.frozen(kw_only=True)
class ForgetfulSpec(DistilSpec):
    """Wants rows, and has no method for them."""

    def contract(self) -> Contract:
        return Contract(
            needs={"image_tokens": "B S D", "teacher_tokens": "B S D"},
            sizes=("D",),
            losses=("distance",),
            after={"image_tokens": "T S D"},
        )


@component("st.contrast", role=Role.ALIGNMENT, build="state_bundle:Contrast")
@attrs.frozen(kw_only=True)
class ContrastSpec(Small):
    """A loss on pooled vectors, and a queue of embeddings that another call makes, of a layer of its own."""

    is_twice: bool = param(False, help="both calls name the rows")

    def calls(self) -> dict[str, Contract]:
        after, embedding = {"image_embedding": "T D"}, {"image_embedding": "B D"}
        twice = after if self.is_twice else {}
        return {
            "forward": Contract(needs={"pooled": "B D"}, sizes=("D",), losses=("size",), after=after),
            "embed_image": Contract(needs={"image_tokens": "B S D"}, gives=embedding, sizes=("D",), after=twice),
        }


class Contrast(Alignment):
    """``size = mean(x^2)``."""

    def __init__(self, spec: ContrastSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(dims["D"]))

    def forward(self, pooled: Tensor) -> Output:
        return Output(losses={"size": (self.scale * pooled).square().mean()})

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() or not self.training, "no loss needs it"
        return nn.functional.normalize(image_tokens.mean(dim=1), dim=-1)

    def after_step(self, image_embedding: Tensor) -> None:
        self.mean.copy_(image_embedding.mean(dim=0))


SPECS: list[type[ComponentSpec]] = [EncoderSpec, PoolSpec, FitSpec, DistilSpec, QueueSpec, ForgetfulSpec, ContrastSpec]


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    for spec in SPECS:
        registry.add(spec)


# ------------------------------------------------------------------------------------------------------------------- in a run

RECIPE = """\
medvlp: 1
model:
  image_encoder: {use: st.encoder}
  decoders:
    fit: {use: st.fit}
train: {steps: 7, batch_size: 8, drop_last: false, learning_rate: 0.01}
"""


def read(text: str) -> tuple[ModelPlan | None, Diagnostics]:
    """Plan a recipe that has no data."""
    diagnostics = Diagnostics()
    host = PluginHost.from_modules({"st": sys.modules[__name__]})
    assert not host.broken, host.broken
    node = parse_yaml(text, file="recipe.yaml", diagnostics=diagnostics)
    assert node is not None, [str(one) for one in diagnostics]
    return compose(node, host, diagnostics), diagnostics


def plan_of(text: str) -> ModelPlan:
    """The plan of a recipe without errors."""
    plan, diagnostics = read(text)
    assert plan is not None, "\n".join(map(str, diagnostics))
    return plan


def messages(text: str) -> str:
    """The errors of a recipe, as a user reads them."""
    return "\n".join(str(problem) for problem in read(text)[1].errors)


class Images:
    """23 random images: the third step of an epoch of batches of 8 has 7, which neither 2 processes nor 3 passes share evenly."""

    images = torch.randn(23, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    #: Rows that make a step NaN.
    bad_rows: tuple[int, ...] = ()

    def records(self, split: str) -> list[Any]:
        return [SimpleNamespace(id=f"study-{index}") for index in range(len(self.images))]

    def batch(self, rows: list[int]) -> Batch:
        index = torch.tensor(rows)
        image = self.images[index].clone()
        image[torch.isin(index, torch.tensor(self.bad_rows, dtype=torch.int64))] = float("nan")
        return {"image": image, "record_index": index}

    def training_batches(self, order: DataOrder, steps: range, *, share: Share, **_: Any) -> Iterator[Batch]:
        for step in steps:
            for part in share.of(order.pairs(step)):
                yield self.batch([draw.row for draw in part])


@attrs.define
class Run:
    """A training in float64. ``seen`` is called with the state after every step."""

    plan: ModelPlan
    model: ComposedModel
    state: TrainState
    forward: nn.Module
    events: list[Any] = attrs.field(factory=list)
    images: Images = attrs.field(factory=Images)

    @classmethod
    def of(cls, text: str, *, seed: int = 3, resumed: Path | None = None) -> Run:
        """The run of a recipe before its first step, or as a checkpoint has it."""
        plan = plan_of(text)
        model = build_model(plan, seed=seed).double()
        if resumed is not None:
            load_weights(model, resumed / WEIGHTS)
        prepare(model, plan.train)
        forward = for_processes(model, plan.train, CPU, world_size())
        state = TrainState.fresh(model, plan.train, CPU)
        if resumed is not None:
            load_state(state, resumed)
        return cls(plan, model, state, forward)

    def train(self, *, seen: Callable[[Run], None] = lambda run: None, stop_after: int | None = None) -> Run:
        """Train to the end, or until some steps are done."""
        stop = StopRequest()

        def notify(event: Any) -> None:
            self.events.append(event)
            seen(self)
            if stop_after is not None and self.state.step + 1 == stop_after:
                stop.signal = "SIGINT"  # taken note of in the next step

        if stop_after is not None and self.state.step + 1 == stop_after:
            stop.signal = "SIGINT"
        train(
            self.state,
            self.images,  # type: ignore[arg-type]
            self.plan.train,
            forward=self.forward,
            device=CPU,
            notify=notify,
            save=lambda _: None,
            stop=stop,
        )
        return self

    def save(self, folder: Path) -> Path:
        """Write a checkpoint."""
        tokenizer: Any = SimpleNamespace(save=lambda folder: None)
        save_checkpoint(folder, plan=self.plan, state=self.state, tokenizer=tokenizer, metadata={}, progress={})
        return folder
