"""Weights to begin with (``init_from`` in a recipe): where they come from, what fits where, and a summary of every tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import attrs
import safetensors.torch
from rich.console import Console
from torch import Tensor, nn

from medvlp_core.errors import Problem, SpecError
from medvlp_core.model.composed import ComposedModel
from medvlp_core.model.weights import LoadedWeights, fit_weights, read_weights
from medvlp_core.nn.interfaces import Exportable
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.runtime.files import write_at_once
from medvlp_core.spec.blocks import InitSpec
from medvlp_core.spec.roles import MODEL_BLOCKS, Role
from medvlp_core.training.checkpoint import (
    EMA_WEIGHTS,
    METADATA,
    TOKENIZER,
    WEIGHTS,
    check_files,
    find_checkpoint,
    list_checkpoints,
    weights_of,
)
from medvlp_core.training.run_folder import INIT_SUMMARY, translate_write_errors

#: Files with the weights in a folder of transformers, timm or an export.
_LIBRARY_FILES = (WEIGHTS, "pytorch_model.bin")


@attrs.frozen(kw_only=True)
class InitSummary:
    """The weights that a model began with: where they came from, and what became of the tensors of each part."""

    source: Path
    parts: dict[str, LoadedWeights]

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"init_from: {self.source}"
        yield from (f"  {part}: {loaded}" for part, loaded in self.parts.items())

    def write(self, folder: Path) -> None:
        """Every name, as ``init_from.json`` in a run folder.

        Raises:
            DataError: it cannot be written (MV508).
        """
        content = {"source": str(self.source), "parts": {part: attrs.asdict(loaded) for part, loaded in self.parts.items()}}
        with translate_write_errors(folder):
            write_at_once(folder / INIT_SUMMARY, json.dumps(content, indent=2) + "\n")


def load_initial_weights(model: ComposedModel, folder: Path | None, console: Console) -> None:
    """Do what the recipe's ``init_from`` says and tell of it; tell of checkpoints that encoders read when they were built, too.

    ``folder``: the run folder, for the summary; None in all processes but the main one.

    Raises:
        SpecError: there are no such weights (MV509), they cannot be read (MV507), or nothing fits (MV509).
    """
    for name, part in model.named_children():
        if isinstance(loaded := getattr(part, "loaded", None), LoadedWeights):
            console.print(f"{name}: pretrained weights: {loaded}", markup=False, soft_wrap=True)
    summary = init_from(model, model.plan.init_from)
    if summary is not None:
        for line in summary.lines():
            console.print(line, markup=False, soft_wrap=True)
        if folder is not None:
            summary.write(folder)


def init_from(model: ComposedModel, spec: InitSpec) -> InitSummary | None:
    """Fill what fits from the weights that ``spec`` names; the rest of the model stays as it is. None if it names none.

    Raises:
        SpecError: see :func:`load_initial_weights`.
    """
    if spec.path is None:
        return None
    own = weights_of(model)
    chosen = spec.parts or tuple(part for part in MODEL_BLOCKS if any(name.startswith(f"{part}.") for name in own))
    for part in chosen:
        if not any(name.startswith(f"{part}.") for name in own):
            raise _cannot(f"this model has no {part} with weights", hint="take it out of init_from.parts")
    source = _checkpoint(Path(spec.path))
    given = _run_weights(source) if source is not None else read_weights(_library_file(Path(spec.path)))
    is_of_run = source is not None or _is_of_run(given)
    if not is_of_run and len(chosen) != 1:
        text = "the file is none of medvlp's, and init_from does not say for which part it is"
        raise _cannot(text, hint="write `parts: [image_encoder]` or `parts: [text_encoder]`")
    values: dict[str, Tensor] = {}
    parts: dict[str, LoadedWeights] = {}
    for part in chosen:
        found, parts[part] = (_fit_part if is_of_run else _fit_library)(model, part, own, given)
        values |= found
    summary = InitSummary(source=source or Path(spec.path), parts=parts)
    _check_something_fits(summary, spec)
    model.load_state_dict(values, strict=False)
    named = [path for path, one in model.plan.components.items() if one.follows is not None and _is_filled(path, values)]
    model.reset_followers(but=named)
    return summary


def _is_filled(path: str, values: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(f"{path.removeprefix('model.')}.") for name in values)


def check_init_source(plan: ModelPlan) -> None:
    """Find out early if there is nothing to begin with.

    Raises:
        SpecError: ``init_from`` names no file and no folder that exists (MV509).
    """
    if plan.init_from.path is not None:
        _checkpoint(Path(plan.init_from.path))


def starting_vocabulary(plan: ModelPlan) -> Path | None:
    """The vocabulary that the text encoder of ``init_from`` was trained with; None where the run makes its own.

    Raises:
        DataError: the checkpoint is damaged (MV507).
        SpecError: there is nothing, or a text encoder of medvlp without its vocabulary (MV509).
    """
    spec = plan.init_from
    if spec.path is None or not spec.takes_vocabulary or plan.one(Role.TEXT_ENCODER) is None:
        return None
    source = _checkpoint(Path(spec.path))
    if source is not None:
        check_files(source, TOKENIZER)
        return source / TOKENIZER
    file = _library_file(Path(spec.path))
    names = read_weights(file).keys()
    if not _is_of_run(names) or not any(name.startswith("text_encoder.") for name in names):
        return None  # a library's text encoder; the recipe names the tokenizer that belongs to it
    if not (file.parent / TOKENIZER).is_dir():
        hint = "give a run, or the whole folder that `medvlp export --to safetensors` wrote; or parts: without text_encoder"
        raise _cannot(f"{file} holds a text encoder, and its vocabulary is not beside it", hint=hint)
    return file.parent / TOKENIZER


def _checkpoint(path: Path) -> Path | None:
    """The folder of medvlp's checkpoint, or None if ``path`` is something else.

    Raises:
        SpecError: there is nothing (MV509).
    """
    if not path.exists():
        hint = "give a run folder, a checkpoint's folder, or a file with weights"
        raise _cannot(f"there is no file or folder {str(path)!r}", hint=hint)
    return find_checkpoint(path) if (path / METADATA).is_file() or list_checkpoints(path) else None


def _library_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = [path / name for name in _LIBRARY_FILES if (path / name).is_file()]
    if not found:
        text = f"the folder {path} holds neither a checkpoint of medvlp nor {' nor '.join(_LIBRARY_FILES)}"
        raise _cannot(text, hint="give a run folder, or the file itself")
    return found[0]


def _run_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, EMA weights where it has some."""
    check_files(folder, WEIGHTS, EMA_WEIGHTS)
    given = read_weights(folder / WEIGHTS)
    if (folder / EMA_WEIGHTS).is_file():
        given |= safetensors.torch.load_file(folder / EMA_WEIGHTS)
    return given


def _is_of_run(given: Iterable[str]) -> bool:
    """Whether a file's names begin with parts of a model: it is a ``model.safetensors`` of medvlp."""
    return all(name.partition(".")[0] in MODEL_BLOCKS for name in given)


def _fit_part(
    model: ComposedModel, part: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadedWeights]:
    """A part from the part of the same name."""
    prefix = f"{part}."
    mine = {name: value for name, value in own.items() if name.startswith(prefix)}
    theirs = {name: value for name, value in given.items() if name.startswith(prefix)}
    module: nn.Module = getattr(model, part)
    if not isinstance(module, Exportable):
        return fit_weights(mine, theirs)
    # What the module does not train and takes nothing from the library is fixed by the recipe, such as sine-cosine positions.
    for name in model.fixed_parameters & set(mine) - {f"{prefix}{name}" for name in module.library_names().values()}:
        mine.pop(name)
    return fit_weights(mine, theirs, adapt=lambda name, found, target: module.fit_weight(name.removeprefix(prefix), found, target))


def _fit_library(
    model: ComposedModel, part: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadedWeights]:
    """An encoder from a file with the names of its library, which may stand behind a prefix such as ``bert.``.

    Raises:
        SpecError: the part is not built around a library's model (MV509).
    """
    module = getattr(model, part)
    if not isinstance(module, Exportable):
        component = next(one for path, one in model.plan.components.items() if path.startswith(f"model.{part}"))
        raise _cannot(f"{component.label} takes weights from medvlp's own checkpoints alone", hint="give a run folder")
    names = module.library_names()
    mine = {library: own[f"{part}.{name}"] for library, name in names.items() if f"{part}.{name}" in own}
    prefix = _best_prefix(mine, given)
    theirs = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    values, loaded = fit_weights(mine, theirs, adapt=lambda name, found, target: module.fit_weight(names[name], found, target))
    others = tuple(name for name in given if not name.startswith(prefix))
    return {f"{part}.{names[name]}": value for name, value in values.items()}, attrs.evolve(loaded, unused=loaded.unused + others)


def _best_prefix(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What stands before the names of a library in a file: the beginning under which most of them are found."""
    words = [name.split(".") for name in given]
    choices = {"", *(".".join(parts[:count]) + "." for parts in words for count in (1, 2))}
    plain = {name.replace(".", "_") for name in own}

    def hits(prefix: str) -> int:
        return sum(name[len(prefix) :].replace(".", "_") in plain for name in given if name.startswith(prefix))

    return max(sorted(choices, key=len), key=hits)


def _check_something_fits(summary: InitSummary, spec: InitSpec) -> None:
    empty = [part for part, loaded in summary.parts.items() if not loaded.matched and not loaded.adapted]
    if empty and (spec.parts is not None or len(empty) == len(summary.parts)):
        lines = tuple(f"{part}: {summary.parts[part]}" for part in empty)
        hint = "the checkpoint must come from the same components, with the same sizes; `medvlp diff` compares two recipes"
        raise _cannot(f"nothing in {summary.source} fits {', '.join(empty)}", details=lines, hint=hint)


def _cannot(text: str, *, hint: str, details: tuple[str, ...] = ()) -> SpecError:
    return SpecError(Problem(code="MV509", text=f"init_from: {text}", details=details, hint=hint))
