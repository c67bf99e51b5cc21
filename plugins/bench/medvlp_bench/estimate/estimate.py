"""The estimate of a recipe on some GPUs, and what would make it fit if it does not."""

from __future__ import annotations

import os
import time

import attrs
import torch

from medvlp_bench.estimate.cards import CARDS, GIB, Card
from medvlp_bench.estimate.cost import Memory, Seconds, count_steps, memory_of, pairs_of_a_micro_batch, seconds_of
from medvlp_bench.estimate.fake import fake_model
from medvlp_bench.estimate.step import Parts, build_for_estimate, count_parts, follow
from medvlp_bench.estimate.trace import StepTrace
from medvlp_core import DataError, Problem, Role, SpecError
from medvlp_core.kernels.machine import measure_rates
from medvlp_core.model import ComposedModel, build_pipeline, build_source, build_tokenizer
from medvlp_core.planning import ModelPlan, TrainSpec

#: Code of the message for a run that does not fit on the GPU.
TOO_LARGE = "MV604"


@attrs.frozen(kw_only=True)
class Estimate:
    """What a run costs. ``steps`` is None where the pairs are not known; ``why_unknown`` says why the data were not read."""

    plan: ModelPlan
    card: Card
    gpus: int
    parts: Parts
    trace: StepTrace
    memory: Memory
    seconds: Seconds
    pairs: int | None
    steps: int | None
    why_unknown: str | None
    problem: Problem | None


def estimate(plan: ModelPlan, card: Card, gpus: int, pairs: int | None = None) -> Estimate:
    """Build the model, follow one step, and compute. ``pairs`` is the number of training pairs, if the data are not here.

    Raises:
        SpecError: the batch has fewer pairs than micro-batches (MV104).
        MedvlpError: the step cannot be followed (MV603).
    """
    spec = plan.train
    if spec.batch_size < gpus * spec.gradient_accumulation_steps:
        each = "1 micro-batch" if spec.gradient_accumulation_steps == 1 else f"{spec.gradient_accumulation_steps} micro-batches"
        gpu = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        text = f"train.batch_size={spec.batch_size} pairs cannot be shared by {gpu} with {each} each"
        hint = f"batch_size counts the pairs of all GPUs: {gpus * spec.gradient_accumulation_steps} or more"
        raise SpecError(Problem(code="MV104", text=text, hint=hint))
    why_unknown = None
    if pairs is None and spec.epochs is not None:
        pairs, why_unknown = count_pairs(plan)
    built = build_for_estimate(plan)
    parts = count_parts(built)
    model = fake_model(built)
    trace = follow(model, spec, pairs_of_a_micro_batch(spec, gpus), is_gpu=card.is_gpu, gpus=gpus)
    memory = memory_of(parts, trace, spec, gpus, card)
    problem = None
    if memory.total > card.memory:
        problem = too_large(model, parts, trace, spec, gpus, card)
    return Estimate(
        plan=plan,
        card=card,
        gpus=gpus,
        parts=parts,
        trace=trace,
        memory=memory,
        seconds=seconds_of(parts, trace, spec, gpus, card),
        pairs=pairs,
        steps=count_steps(spec, pairs, gpus),
        why_unknown=why_unknown,
        problem=problem,
    )


def count_pairs(plan: ModelPlan) -> tuple[int | None, str | None]:
    """The training pairs of the recipe's data, or why they are not known."""
    if plan.one(Role.DATA) is None:
        return None, "the recipe has no data"
    try:
        source = build_source(plan)
        return len(build_pipeline(plan, source, build_tokenizer(plan)).records("train")), None
    except DataError as error:
        return None, "; ".join(problem.text for problem in error.problems)


def card_for(name: str, *, needs_half: bool) -> Card:
    """The card of a name; the CPU of this machine is measured."""
    return CARDS[name] if name in CARDS else measured_cpu(needs_half=needs_half)


def measured_cpu(*, needs_half: bool) -> Card:
    """This machine's CPU, from a large matrix product and a large copy."""
    rates = measure_rates(torch.device("cpu"), torch.float32)
    return Card(
        name="cpu",
        about=f"this machine's CPU, {torch.get_num_threads()} threads",
        half=_half_rate() if needs_half else rates.flops,
        full=rates.flops,
        memory=float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        bandwidth=rates.bytes,
        link=rates.bytes,
        source="measured",
        matmul_share=1.0,
        memory_share=1.0,
        link_share=1.0,
        reserved=0.5 * GIB,
    )


def _half_rate() -> float:
    """Some CPUs multiply bf16 a hundred times slower than fp32, so a small product must do."""
    side = 256
    left = torch.ones(side, side, dtype=torch.bfloat16)
    left @ left
    start = time.perf_counter()
    left @ left
    return 2.0 * side**3 / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------------------- what would fit


def too_large(model: ComposedModel, parts: Parts, trace: StepTrace, spec: TrainSpec, gpus: int, card: Card) -> Problem:
    """By how much a run does not fit, and each single setting that changes that, with what it then needs."""

    def needs(spec: TrainSpec, trace: StepTrace) -> float:
        return memory_of(parts, trace, spec, gpus, card).total

    total = needs(spec, trace)
    found: list[tuple[str, float]] = []
    if not spec.activation_checkpointing:
        changed = attrs.evolve(spec, activation_checkpointing=True)
        found.append(
            (
                "train.activation_checkpointing=true",
                needs(changed, follow(model, changed, trace.pairs, is_gpu=card.is_gpu, gpus=gpus)),
            )
        )
    if gpus > 1 and spec.parallel == "ddp":
        found.append(("train.parallel=fsdp", needs(attrs.evolve(spec, parallel="fsdp"), trace)))
    if (micro_batches := _micro_batches_that_fit(model, parts, trace, spec, gpus, card)) is not None:
        changed = attrs.evolve(spec, gradient_accumulation_steps=micro_batches)
        smaller = follow(model, changed, pairs_of_a_micro_batch(changed, gpus), is_gpu=card.is_gpu, gpus=gpus)
        if (
            gpus * micro_batches <= spec.batch_size
        ):  # else a micro-batch of some GPU would have no pair, which the training loop refuses
            found.append(
                (
                    f"train.gradient_accumulation_steps={micro_batches}, with which contrasts see fewer pairs",
                    needs(changed, smaller),
                )
            )
        batch_size = gpus * spec.gradient_accumulation_steps * smaller.pairs
        found.append((f"train.batch_size={batch_size}", needs(attrs.evolve(spec, batch_size=batch_size), smaller)))
    details = tuple(
        f"{setting}: {need / GIB:.1f} GiB, {'fits' if need <= card.memory else 'does not fit'}" for setting, need in found
    )
    good = [setting for setting, need in found if need <= card.memory]
    text = f"a step needs {total / GIB:.1f} GiB on each GPU, {(total - card.memory) / GIB:.1f} GiB more than {card.name} has"
    hint = (
        f"--set {good[0].partition(',')[0]}"
        if good
        else "no single setting makes it fit: combine them, or take a larger GPU or a smaller model"
    )
    return Problem(code=TOO_LARGE, text=text, details=details, hint=hint)


def _micro_batches_that_fit(
    model: ComposedModel, parts: Parts, trace: StepTrace, spec: TrainSpec, gpus: int, card: Card
) -> int | None:
    """Micro-batches a step with which one is small enough, by the line through two traces; None if not even a pair would be."""
    if trace.pairs == 1:
        return None
    half = follow(model, spec, trace.pairs // 2, is_gpu=card.is_gpu, gpus=gpus)
    first, second = (
        memory_of(parts, one, attrs.evolve(spec, gradient_accumulation_steps=2), gpus, card).total for one in (trace, half)
    )
    for_a_pair = (first - second) / (trace.pairs - half.pairs)
    # A little less than the line says: attention and contrasts do not grow quite evenly.
    pairs = int((0.98 * card.memory - (first - for_a_pair * trace.pairs)) / for_a_pair)
    if pairs < 1:
        return None
    return -(-spec.batch_size // (gpus * pairs))
