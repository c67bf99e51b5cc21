"""Both encoders as ONNX graphs, compared with the model in onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvlp_core.errors import Problem, SpecError, first_line
from medvlp_core.export.onnx_usage import image_snippet, joined, text_snippet
from medvlp_core.model.composed import ComposedModel
from medvlp_core.training.checkpoint import LoadedRun

NEEDED = ("onnx", "onnxscript", "onnxruntime")
#: Largest difference of any output to the model's.
TOLERANCE = 1e-4
#: A file of protobuf cannot be larger than 2 GB; weights beyond this lie beside the graph.
_LARGEST_FILE = 1.5e9
_SAMPLE = ("The heart is enlarged and the lungs are clear.", "No pneumothorax.")
_HINT = "--to safetensors writes the weights of every model"
#: The colours of a terminal.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Graph(nn.Module):
    """The calls that lead from some inputs to some ports."""

    def __init__(self, model: ComposedModel, wanted: Sequence[str]) -> None:
        super().__init__()
        self.model, self.wanted = model, tuple(wanted)


class _ImageGraph(_Graph):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.ports({"image": image}, *self.wanted).values())


class _TextGraph(_Graph):
    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> tuple[Tensor, ...]:
        batch = {"token_ids": token_ids, "text_is_valid": text_is_valid, "word_ids": word_ids}
        return tuple(self.model.ports(batch, *self.wanted).values())


def export_onnx(loaded: LoadedRun, folder: Path) -> str:
    """Write ``image_encoder.onnx`` and ``text_encoder.onnx``, as far as the model has them, and the tokenizer.

    Raises:
        SpecError: packages are missing, torch cannot trace a part, or onnxruntime computes something else (MV510).
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        text = f"an export to onnx needs {', '.join(missing)}"
        raise SpecError(Problem(code="MV510", text=text, hint="pip install 'medvlp-core[onnx]'"))
    model = loaded.model
    first = next(iter(model.alignments), None)
    calls = []
    if model.image_encoder is not None:
        size = loaded.image_transform().geometry
        image = torch.randn(3, size.channels, size.height, size.width, generator=torch.Generator().manual_seed(0))
        ports = {"image_tokens": "image_tokens"}
        if model.encode_image(image).image_prefix.shape[1]:
            ports["image_prefix"] = "image_prefix"
        ports |= _vector(model, f"{first}.image_embedding", {"image"}, "image_vector")
        outputs = list(ports)
        graph = _ImageGraph(model, [*ports.values()]).eval()
        _export(graph, {"image": image}, outputs, {"image": {0: "batch"}}, folder / "image_encoder.onnx")
        calls.append(image_snippet(loaded, outputs))
    if model.text_encoder is not None:
        tokens = loaded.tokenizer.encode(_SAMPLE).tokens._asdict()
        ports = {"text_tokens": "text_tokens", **_vector(model, f"{first}.text_embedding", set(tokens), "text_vector")}
        outputs = list(ports)
        axes = {name: {0: "batch", 1: "length"} for name in tokens}
        inputs = _export(_TextGraph(model, [*ports.values()]).eval(), tokens, outputs, axes, folder / "text_encoder.onnx")
        loaded.tokenizer.save(folder / "tokenizer")
        calls.append(text_snippet(loaded, inputs, outputs))
    return joined(calls)


def _vector(model: ComposedModel, port: str, inputs: set[str], name: str) -> dict[str, str]:
    """The output ``name``, if the model gives the port and makes it from these inputs alone."""
    wiring = model.plan.wiring
    key = wiring.key(port)
    if key is None:
        return {}
    calls = wiring.route([key])
    taken = {source for call in calls for _, source in call.takes} - {key for call in calls for key in call.gives}
    return {name: port} if {str(source) for source in taken} <= {*inputs, "progress"} else {}


def _export(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, Any], path: Path) -> list[str]:
    """Write one graph and compare it; returns the names of the inputs that it kept."""
    import onnxruntime

    size = sum(value.numel() * value.element_size() for value in graph.parameters())
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                graph,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=axes,
                dynamo=True,
                external_data=size > _LARGEST_FILE,
            )
    except Exception as error:  # what the exporter raises is its own affair
        cause = _innermost(error)
        text = f"torch cannot export {path.stem} to onnx: {type(cause).__name__}: {_COLOUR.sub('', first_line(cause))}"
        raise SpecError(Problem(code="MV510", text=text, details=_code_line(cause), hint=_HINT)) from error
    with torch.no_grad():
        # Other sizes than those it was traced with.
        other = {name: torch.cat([value, value.flip(0)[:1]])[:, : None if value.ndim > 2 else 5] for name, value in inputs.items()}
        wanted = graph(**other)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    kept = [one.name for one in session.get_inputs()]
    found = session.run(None, {name: other[name].numpy() for name in kept})
    difference = max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    if not difference <= TOLERANCE:
        text = f"{path.name} differs by {difference:.1e} from the model in onnxruntime; {TOLERANCE:.0e} is allowed"
        raise SpecError(Problem(code="MV510", text=text, hint=_HINT))
    return kept


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _code_line(error: BaseException) -> tuple[str, ...]:
    """The last line of a component that an error passed, if it passed one."""
    torch_folder = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename != __file__ and not Path(frame.filename).is_relative_to(torch_folder):
            return (f"in {Path(frame.filename).name}, line {frame.lineno}: {frame.line}",)
    return ()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps, graphs that it gave up, and warnings meant for its developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
