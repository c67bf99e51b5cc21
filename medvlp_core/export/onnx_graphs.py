"""Both encoders as ONNX graphs, compared with the model in onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvlp_core.errors import Problem, SpecError, first_line
from medvlp_core.interfaces import Alignment
from medvlp_core.model import ComposedModel
from medvlp_core.train.checkpoint import LoadedRun

NEEDED = ("onnx", "onnxscript", "onnxruntime")
#: Largest difference of any output to the model's.
TOLERANCE = 1e-4
#: A file of protobuf cannot be larger than 2 GB; weights beyond this lie beside the graph.
_LARGEST_FILE = 1.5e9
_SAMPLE = ("The heart is enlarged and the lungs are clear.", "No pneumothorax.")


class _ImageGraph(nn.Module):
    def __init__(self, model: ComposedModel, alignment: Alignment | None) -> None:
        super().__init__()
        self.encoder, self.alignment = model.image_encoder, alignment

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        assert self.encoder is not None
        tokens, prefix = self.encoder(image)[:2]
        vectors = () if self.alignment is None else (self.alignment.embed_image(tokens, prefix),)
        return (tokens, *((prefix,) if prefix.shape[1] else ()), *vectors)


class _TextGraph(nn.Module):
    def __init__(self, model: ComposedModel, alignment: Alignment | None) -> None:
        super().__init__()
        self.encoder, self.alignment = model.text_encoder, alignment

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> tuple[Tensor, ...]:
        assert self.encoder is not None
        tokens = self.encoder(token_ids, text_is_valid)
        return (tokens,) if self.alignment is None else (tokens, self.alignment.embed_text(tokens, text_is_valid, word_ids))


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
    alignment = model.alignments[next(iter(model.alignments))] if model.alignments else None
    assert alignment is None or isinstance(alignment, Alignment)
    calls = []
    if model.image_encoder is not None:
        size = loaded.image_transform().geometry
        image = torch.randn(3, size.channels, size.height, size.width, generator=torch.Generator().manual_seed(0))
        prefix = ["image_prefix"] if model.image_encoder(image).image_prefix.shape[1] else []
        names = ["image_tokens", *prefix, *(["image_vector"] if alignment is not None else [])]
        graph = _ImageGraph(model, alignment).eval()
        _export(graph, {"image": image}, names, {"image": {0: "batch"}}, folder / "image_encoder.onnx")
        calls.append('image = onnxruntime.InferenceSession("image_encoder.onnx").run(None, {"image": images})')
    if model.text_encoder is not None:
        tokens = loaded.tokenizer.encode(_SAMPLE)._asdict()
        names = ["text_tokens", *(["text_vector"] if alignment is not None else [])]
        axes = {name: {0: "batch", 1: "length"} for name in tokens}
        _export(_TextGraph(model, alignment).eval(), tokens, names, axes, folder / "text_encoder.onnx")
        loaded.tokenizer.save(folder / "tokenizer")
        calls.append(
            'tokens = {"token_ids": ids, "text_is_valid": is_valid, "word_ids": word_ids}  # int64, bool, int64, all (B, L)\n'
            'text = onnxruntime.InferenceSession("text_encoder.onnx").run(None, tokens)'
        )
    return "\n".join(["import onnxruntime", "", *calls])


def _export(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], axes: dict[str, Any], path: Path) -> None:
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
        text = f"torch cannot export {path.stem} to onnx: {type(error).__name__}: {first_line(error)}"
        raise SpecError(Problem(code="MV510", text=text, hint="export to safetensors instead")) from error
    with torch.no_grad():
        # Other sizes than those it was traced with.
        other = {name: torch.cat([value, value.flip(0)[:1]])[:, : None if value.ndim > 2 else 5] for name, value in inputs.items()}
        wanted = graph(**other)
    difference = _difference(path, other, wanted)
    if not difference <= TOLERANCE:
        text = f"{path.name} differs by {difference:.1e} from the model in onnxruntime; {TOLERANCE:.0e} is allowed"
        raise SpecError(Problem(code="MV510", text=text, hint="export to safetensors instead"))


def _difference(path: Path, inputs: dict[str, Tensor], wanted: Sequence[Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {one.name: inputs[one.name].numpy() for one in session.get_inputs()})
    return max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, wanted, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps, and warnings meant for its developers."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
