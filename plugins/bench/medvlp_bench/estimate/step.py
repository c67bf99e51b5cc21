"""From a plan to one traced step: the model, a batch of full texts, and what each component has to learn."""

from __future__ import annotations

import attrs
import torch
from torch import nn

from medvlp_bench.estimate.fake import fake_batch
from medvlp_bench.estimate.trace import StepTrace, trace_step
from medvlp_core import MedvlpError, Problem, Role
from medvlp_core.model import ComposedModel, build_model, build_run, build_tokenizer, image_geometry
from medvlp_core.nn import Batch
from medvlp_core.planning import ModelPlan, TrainSpec
from medvlp_core.training import layers_of


@attrs.frozen(kw_only=True)
class Weights:
    """Numbers that are trained and that are not (frozen parameters and buffers), how many tensors are trained, and bytes of all.

    ``frozen_bytes`` are those of frozen parameters and buffers. Trained ones are in fp32, as the optimiser needs them.
    """

    trained: int
    frozen: int
    trained_tensors: int
    trained_bytes: int
    frozen_bytes: int


@attrs.frozen(kw_only=True)
class Group:
    """What FSDP divides and gathers together: bytes of parameters, and of those that are trained."""

    parameters: int
    trained: int


@attrs.frozen(kw_only=True)
class Parts:
    """The weights of each component (a tensor that two share counts for the first), of each layer, and of what is in no layer."""

    weights: dict[str, Weights]
    layers: tuple[Group, ...]
    rest: Group

    def total(self, field: str) -> int:
        """The sum of a field over components."""
        return sum(getattr(one, field) for one in self.weights.values())


def build_for_estimate(plan: ModelPlan) -> ComposedModel:
    """The model with random weights. Data are read only where the vocabulary must be learned before its size is known."""
    tokenizer = plan.one(Role.TOKENIZER)
    if tokenizer is not None:
        build_tokenizer(plan)
        if "V" in plan.free_symbols(tokenizer.path):
            return build_run(plan, seed=plan.train.seed).model
    return build_model(plan, seed=plan.train.seed)


def count_parts(model: ComposedModel) -> Parts:
    """Count the weights, component by component."""
    seen: set[int] = set()
    weights = {}
    for path in model.plan.components:
        if path.startswith("model."):
            weights[path] = _count(model.part(path), seen)
    everything, layers = _group(model), tuple(map(_group, layers_of(model)))
    rest = Group(
        parameters=everything.parameters - sum(layer.parameters for layer in layers),
        trained=everything.trained - sum(layer.trained for layer in layers),
    )
    return Parts(weights=weights, layers=layers, rest=rest)


def _group(part: nn.Module) -> Group:
    trained = [one for one in part.parameters() if one.requires_grad]
    return Group(parameters=_bytes(*part.parameters()), trained=_bytes(*trained))


def _count(part: nn.Module, seen: set[int]) -> Weights:
    new = [one for one in (*part.parameters(), *part.buffers()) if id(one) not in seen]
    seen |= {id(one) for one in new}
    trained = [one for one in new if one.requires_grad]
    frozen = [one for one in new if not one.requires_grad]
    return Weights(
        trained=sum(one.numel() for one in trained),
        frozen=sum(one.numel() for one in frozen),
        trained_tensors=len(trained),
        trained_bytes=_bytes(*trained),
        frozen_bytes=_bytes(*frozen),
    )


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def text_length(plan: ModelPlan) -> int:
    """Tokens of the longest text.

    Raises:
        MedvlpError: no component fixes it (MV603).
    """
    found = plan.port_size("token_ids", 1)
    if found is None:
        hint = "its tokenizer declares no longest text: give token_ids a number of tokens in the contract"
        raise MedvlpError(Problem(code="MV603", text="the length of the texts is not known before training", hint=hint))
    return found


def full_batch(plan: ModelPlan, pairs: int) -> Batch:
    """Pairs whose texts fill the longest length with words of one token each; what the images hold is left to the caller.

    Shape:
        as the input pipeline makes it, (pairs, ...).
    """
    sizes, length = image_geometry(plan), text_length(plan)
    vocabulary = plan.port_size("vocabulary", 0)
    assert vocabulary is not None  # the text encoder is built
    batch = {
        "image": torch.empty(pairs, sizes.channels, sizes.height, sizes.width),
        "token_ids": torch.randint(vocabulary // 2, vocabulary, (pairs, length)),  # special tokens come first
        "text_is_valid": torch.ones(pairs, length, dtype=torch.bool),
        "word_ids": torch.arange(-1, length - 1).repeat(pairs, 1),
        "record_index": torch.arange(pairs),
    }
    if sizes.target_height is not None and sizes.target_width is not None:
        batch["image_target"] = torch.empty(pairs, sizes.channels, sizes.target_height, sizes.target_width)
    return batch


def follow(model: ComposedModel, spec: TrainSpec, pairs: int, *, is_gpu: bool, gpus: int = 1) -> StepTrace:
    """Trace one pass of a model without numbers, on one of some GPUs. Masks are those of the recipe's seed.

    Raises:
        MedvlpError: a component looks at numbers that do not exist (MV603).
    """
    batch = fake_batch(full_batch(model.plan, pairs), model)
    torch.manual_seed(spec.seed)
    return trace_step(model, batch, spec, is_gpu=is_gpu, gpus=gpus)
