"""Puts a component into a complete model: the kit's stub components take the other roles, in sizes that fit it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from medvlp_core.errors import MedvlpError, Problem, SpecError
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan, plain
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import dump_yaml
from medvlp_core.spec.contract import PORTS
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import CheckFailed, NotApplicable
from medvlp_core.testing.stub_components import plugin as stub_components
from medvlp_core.testing.subject import Example, Subject
from medvlp_core.testing.synthetic_batch import PATCH_PORTS, TEXT_PORTS, is_along, number_of
from medvlp_core.training.events import Event, StepDone
from medvlp_core.training.loop import train
from medvlp_core.training.metrics_file import MetricsFile
from medvlp_core.training.run_folder import METRICS
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest

CPU = torch.device("cpu")
STEPS, PAIRS = 2, 4
#: Slot of a tested alignment, decoder or evaluator.
TESTED = "tested"


@attrs.frozen(kw_only=True)
class Trained:
    """A model after some steps, with what each step said. ``folder`` holds metrics and takes what a check writes."""

    example: Example
    plan: ModelPlan
    built: BuiltRun
    state: TrainState
    steps: tuple[StepDone, ...]
    folder: Path


def host_with_stubs(subject: Subject) -> PluginHost:
    """A host of the tested bundle and the kit's own."""
    namespace = subject.name.partition(".")[0]
    tested = {one.namespace: one for one in subject.host.plugins if one.namespace == namespace}
    modules = {"kit": stub_components, namespace: subject.host.manager.get_plugin(namespace)}
    host = PluginHost.from_modules(modules, brought_by=tested)
    if host.broken:
        raise CheckFailed(f"the bundle {namespace!r} cannot be loaded beside the kit's: {host.broken[0].reason}")
    return host


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for one model; it goes when the model is done with."""
    with tempfile.TemporaryDirectory(prefix="medvlp-conform-") as name:
        yield Path(name)


def trained_models(subject: Subject) -> Iterator[Trained]:
    """Every example in a model that was trained for two steps. For checks that come after ``trains_in_a_model``.

    Raises:
        NotApplicable: there is no such model, or it does not train.
    """
    host = host_with_stubs(subject)
    for example in subject.examples:
        with scratch_folder() as folder:
            try:
                trained = train_model(example, plan_model(example, host, folder), folder)
            except NotApplicable:
                raise
            except Exception as error:
                raise NotApplicable(f"{example} does not train in a model; trains_in_a_model says why") from error
            yield trained


def train_model(example: Example, plan: ModelPlan, folder: Path) -> Trained:
    """Build a plan and train it for its two steps, with smaller batches if the data have few pairs.

    Raises:
        NotApplicable: the tested data have no pairs to train on.
        MedvlpError: it cannot be built or trained.
    """
    if example.role is Role.DATA and not any(record.text.strip() for record in example.build().records("train")):
        raise NotApplicable(f"{example} has no texts in the split 'train' to train on")
    built = build_run(plan, seed=0)
    pairs = min(PAIRS, len(built.pipeline.records("train")))
    settings = attrs.evolve(plan.train, batch_size=pairs, max_bad_steps=0)  # a loss that is not finite is the part's fault
    steps: list[StepDone] = []
    with MetricsFile(folder / METRICS, log_every_steps=1) as metrics:

        def notify(event: Event) -> None:
            metrics(event)
            if isinstance(event, StepDone):
                steps.append(event)

        state = TrainState.fresh(built.model, settings, CPU)
        stop = StopRequest()  # not entered: no signal is caught
        train(state, built.pipeline, settings, forward=built.model, device=CPU, notify=notify, save=lambda _: None, stop=stop)
    return Trained(example=example, plan=plan, built=built, state=state, steps=tuple(steps), folder=folder)


# ---------------------------------------------------------------------------------------------------------------------- recipe


def plan_model(example: Example, host: PluginHost, folder: Path) -> ModelPlan:
    """Plan a model around an example: with as many of the stub components' losses as it can have.

    An image encoder that cannot do without a mask has no whole images to align: then the alignment is skipped.

    Raises:
        CheckFailed: it fits into none.
        NotApplicable: it needs a port along the text that no stub component gives.
    """
    document = recipe(example)
    heads = [("alignments", "pairs"), ("decoders", "image"), ("decoders", "report")]
    heads = [(kind, slot) for kind, slot in heads if slot in document["model"][kind]]
    least: SpecError | None = None
    is_unused = False
    for skipped in itertools.chain.from_iterable(itertools.combinations(heads, count) for count in range(len(heads) + 1)):
        model = {**document["model"]}
        for kind, slot in skipped:
            model[kind] = {name: block for name, block in model[kind].items() if name != slot}
        path = folder / "recipe.yaml"
        path.write_text(dump_yaml({**document, "model": model}), encoding="utf-8")
        try:
            plan = plan_recipe(path, host=host)
        except SpecError as error:
            least = error if least is None or len(error.problems) < len(least.problems) else least
            continue
        if not any(_is_unused(problem, example) for problem in plan.warnings):
            return plan
        is_unused = True
    what = (
        "no loss of the kit's stub components needs what it gives"
        if is_unused
        else "it fits into no model of the kit's stub components"
    )
    raise CheckFailed(f"{example}: {what}" + (f": {without_places(least)}" if least else ""))


def without_places(error: MedvlpError) -> str:
    """The first problem of an error, without its place in a recipe that nobody can look at any more."""
    return str(attrs.evolve(error.problems[0], position=None)) if error.problems else str(error)


def _is_unused(problem: Problem, example: Example) -> bool:
    return problem.code == "MV208" and f"({example.name})" in problem.text


def recipe(example: Example) -> dict[str, Any]:
    """A complete recipe with the example in its slot, as plain data."""
    rows, columns = _grid(example)
    needs = [need for call in example.calls for need in call.contract.needs.values()]
    layout = next((need.layout for need in needs if need.port == "image_tokens" and need.layout), "dropped")
    text_ports = ("text_tokens", "text_embeddings", "fused_text_tokens", "fused_text_embeddings")
    width = example.size(text_ports, 2, 24)
    image_width = example.size(("image_tokens", "image_prefix", "fused_image_tokens"), 2, 24)
    given = _gives(example) if example.role is Role.FUSION else {"fused_text_tokens"}
    has_text = bool(given & {"fused_text_tokens", "fused_text_embeddings"})
    strange = _strange(example)
    document: dict[str, Any] = {
        "medvlp": 1,
        "data": {"use": "kit.pairs"},
        "tokenizer": {
            "use": "kit.words",
            "size": example.size(("vocabulary",), 0, 64),
            "max_length": example.size(("token_ids", "text_is_valid", *text_ports), 1, 24),
            "end_of_text": any(need.port == "end_of_text" for need in needs),
        },
        "model": {
            "masking": {"use": "kit.masking"},
            "image_encoder": {
                "use": "kit.image_encoder",
                "channels": example.size(("image", "image_target"), 1, 1),
                "height": example.size(("image",), 2, 8 * rows),
                "width": example.size(("image",), 3, 8 * columns),
                "rows": rows,
                "columns": columns,
                "token_width": image_width,
                "heads": _heads(image_width),
                "prefix": example.size(("image_prefix",), 1, 1),
                "layout": layout,
            },
            "text_encoder": {"use": "kit.text_encoder", "width": width, "heads": _heads(width)},
            "fusion": {"use": "kit.fusion", "heads": _heads(width)},
            "alignments": {"pairs": {"use": "kit.alignment"}},
            "decoders": {
                "image": {"use": "kit.image_decoder", "reads": "image_tokens" if has_text else "fused_image_tokens"},
                "report": {"use": "kit.report_decoder", "reads": "fused_text_tokens" if has_text else "text_tokens"},
            },
        },
        "train": {"steps": STEPS, "batch_size": PAIRS, "learning_rate": 1e-3, "warmup_fraction": 0.0},
    }
    if strange:
        document["model"]["parts"] = {"source": {"use": "kit.source", "gives": strange}}
    if example.role is Role.PART:
        document["model"]["decoders"]["distance"] = _distance(example)
    _put(document, example)
    return document


def _strange(example: Example) -> dict[str, str]:
    """The ports that no stub component of its role gives, with their shapes in numbers: ``kit.source`` gives them.

    Raises:
        NotApplicable: one stands along the text or the visible patches, whose number is another one in every batch.
    """
    own = {spec.port for contract in example.contracts.values() for spec in contract.gives.values()}
    found: dict[str, str] = {}
    for call in example.trained:
        for need in call.contract.needs.values():
            if need.is_optional or need.port in PORTS or need.port in own:
                continue
            rows = [dim if dim == "B" else number_of(dim, call.sizes) for dim in need.dims]
            if None in rows or is_along(need, TEXT_PORTS, call.contract):
                raise NotApplicable(f"it needs {need.port} ({need}), which no stub component of the kit gives")
            if is_along(need, PATCH_PORTS, call.contract):
                rows[1] = example.patches
            found[str(need.port)] = " ".join(map(str, rows)) + (f":{need.dtype}" if need.dtype != "float" else "")
    return found


def _distance(example: Example) -> dict[str, Any]:
    """A head that gives a part something to learn: a squared error of all float ports that it gives."""
    reads: dict[str, int] = {}
    for call in example.trained:
        reads |= {str(port): len(spec.dims) for port, spec in call.given(call.contract.needs).items() if spec.dtype == "float"}
    view = next(call.views[0] for call in example.trained)
    needs = {port: f"{TESTED}.{port}" for port in reads}
    return {"use": "kit.squared_error", "reads": reads, "view": view, "needs": needs}


def _put(document: dict[str, Any], example: Example) -> None:
    """Set the tested component into its slot; an alignment takes the stub's place, a decoder that of one that does the same."""
    block = {"use": example.name, **plain(example.spec)}
    *parents, slot = example.role.info.slot.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    if slot != "*":
        place[slot] = block
        return
    if example.role is Role.ALIGNMENT:
        place.pop("pairs")
    if example.role is Role.DECODER:
        for name, port in (("image", "patch_prediction"), ("report", "word_logits")):
            if port in _gives(example):
                place.pop(name)
    place[TESTED] = block


def _gives(example: Example) -> set[str | None]:
    return {spec.port for contract in example.contracts.values() for spec in contract.gives.values()}


def _grid(example: Example) -> tuple[int, int]:
    """Rows and columns of patches: those that the example needs, or as square as its number of patches allows."""
    patches = example.patches
    rows = next(rows for rows in range(int(patches**0.5), 0, -1) if patches % rows == 0)
    return example.size(("image_grid",), 0, rows), example.size(("image_grid",), 1, patches // rows)


def _heads(width: int) -> int:
    return 2 if width % 2 == 0 else 1
