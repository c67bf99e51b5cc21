"""Checkpoints: a folder with the weights (safetensors), the recipe, the vocabulary and its metadata. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from medvlp_core.data.images import read_gray
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.data.transforms import ImageTransform
from medvlp_core.errors import DataError, Problem, SpecError
from medvlp_core.model.build import build_model, build_pipeline, build_source, build_tokenizer, image_geometry
from medvlp_core.model.composed import ComposedModel
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import load_plugins
from medvlp_core.runtime.distributed import is_main
from medvlp_core.spec.pretrained import skip_pretrained_init
from medvlp_core.spec.roles import Role
from medvlp_core.training.run_folder import CHECKPOINTS, RECIPE, resume_command
from medvlp_core.training.state import TrainState, gather_to_main, like

FORMAT = 3
WEIGHTS, EMA_WEIGHTS, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
METADATA, PROGRESS, TOKENIZER = "checkpoint.json", "progress.json", "tokenizer"


def checkpoint_name(step: int) -> str:
    """``step-0000600``: zero-padded, so that names sort by step."""
    return f"step-{step:07d}"


def save_checkpoint(
    folder: Path,
    *,
    plan: ModelPlan,
    state: TrainState,
    tokenizer: Tokenizer | None,
    metadata: dict[str, Any],
    progress: dict[str, Any],
) -> None:
    """Write a checkpoint to ``folder``, replacing an older one. It appears complete or not at all, also if the machine dies.

    ``metadata`` (seed, data fingerprint, machine ...) goes to ``checkpoint.json``, with the format number, and size and hash of
    every file; ``progress`` (numbers of the run's observers) to ``progress.json``. Every process calls this; the main one writes.

    Raises:
        DataError: it cannot be written, for instance because the disk is full (MV507). What was there before is still there.
    """
    tensors = {WEIGHTS: gather_to_main(weights_of(state.model)), OPTIMIZER: gather_to_main(state.optimizer_tensors())}
    if state.ema is not None:
        tensors[EMA_WEIGHTS] = gather_to_main(state.ema.weights)
    if not is_main():
        return
    partial = folder.with_name(f".{folder.name}.partial")  # hidden, so that nobody takes it for a checkpoint
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / TOKENIZER).mkdir(parents=True)
        for name, named in tensors.items():
            safetensors.torch.save_file(named, str(partial / name))
        (partial / RECIPE).write_text(plan.resolved_yaml(), encoding="utf-8")
        for path in partial.glob("*.safetensors"):
            shutil.copymode(partial / RECIPE, path)  # safetensors makes files that nobody else may read, whatever the umask
        if tokenizer is not None:
            tokenizer.save(partial / TOKENIZER)
        _write_json(partial / PROGRESS, {**state.scalars(), **progress})
        files = {str(path.relative_to(partial)): _fingerprint(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        metadata = {"format": FORMAT, "step": state.step, **metadata, "files": files}
        _write_json(partial / METADATA, {**metadata, "blake2b": _hash_of(metadata)})
        for path in [*partial.rglob("*"), partial]:
            _to_disk(path)
        if folder.exists():
            _remove(folder)
        os.replace(partial, folder)
        _to_disk(folder.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        hint = f"make room or make it writable, then resume with: {resume_command(folder.parent.parent)}"
        raise DataError(Problem(code="MV507", text=f"{folder}: the checkpoint cannot be written ({reason})", hint=hint)) from error


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once; shards if the model is sharded."""
    kept = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - kept
    return {name: value for name, value in model.state_dict().items() if name not in tied}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _hash_of(metadata: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(metadata).encode(), digest_size=16).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _to_disk(path: Path) -> None:
    """What was written so far survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune_checkpoints(run: Path, *, keep: int) -> None:
    """Delete all but the ``keep`` newest checkpoints of a run and the one with the lowest loss on the split ``val``.

    And what interrupted writes and :func:`set_aside` left, up to the newest step.
    """
    found = list_checkpoints(run)
    losses = {folder: loss for folder in found if (loss := _validation(folder)) is not None}
    best = min(losses, key=lambda folder: losses[folder], default=None)
    for folder in found[:-keep]:
        if folder != best:
            _remove(folder)
    for left_over in (run / CHECKPOINTS).glob(".step-*"):
        if found and left_over.name.split(".")[1] <= found[-1].name:
            shutil.rmtree(left_over, ignore_errors=True)


def _validation(folder: Path) -> float | None:
    try:
        return _read_metadata(folder / METADATA).get("validation")
    except DataError:  # damaged since it was written, and not the one that is needed now
        return None


def _remove(folder: Path) -> None:
    gone = set_aside(folder)
    shutil.rmtree(gone, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Take a checkpoint out of the way, at once, so that nobody finds half of it."""
    aside = folder.with_name(f".{folder.name}.set-aside")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Hidden folders are left-overs of an interrupted write."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir())


def check_files(folder: Path, *names: str) -> dict[str, Any]:
    """The metadata of a checkpoint, after comparing its files (or files and folders called ``names``) with what was written.

    Raises:
        DataError: a file is missing, cut off or changed (MV507), with the checkpoint before it as a hint.
    """
    metadata = _read_metadata(folder / METADATA)
    _expect_unchanged(folder / METADATA, metadata)
    for name, written in metadata["files"].items():
        path = folder / name
        if names and name.partition("/")[0] not in names:
            continue
        if not path.is_file():
            raise _broken(path, "the file is missing")
        found = _fingerprint(path)
        if found["bytes"] != written["bytes"]:
            raise _broken(path, f"the file has {found['bytes']:,} bytes, and {written['bytes']:,} were written")
        if found != written:
            raise _broken(path, "the file is not what was written: its hash differs")
    return metadata


def _expect_unchanged(path: Path, metadata: dict[str, Any]) -> None:
    rest = {key: value for key, value in metadata.items() if key != "blake2b"}
    if metadata.get("blake2b") != _hash_of(rest):
        raise _broken(path, "the file is not what was written: its hash differs")


def read_progress(folder: Path) -> dict[str, Any]:
    """The numbers that :func:`save_checkpoint` wrote beside the weights."""
    content: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return content


def load_state(state: TrainState, folder: Path) -> None:
    """Optimiser, EMA and counters from a checkpoint whose files are checked; the weights are loaded before sharding."""
    state.load_scalars(read_progress(folder))
    state.load_optimizer_tensors(safetensors.torch.load_file(folder / OPTIMIZER))
    if state.ema is not None:
        parameters = dict(state.model.named_parameters())
        found = safetensors.torch.load_file(folder / EMA_WEIGHTS)
        state.ema.weights = {name: like(parameters[name], found[name]) for name in state.ema.weights}


@attrs.frozen(kw_only=True)
class LoadedRun:
    """A trained model, ready to use: ``model`` is in evaluation mode. ``metadata`` is the content of ``checkpoint.json``."""

    plan: ModelPlan
    found_tokenizer: Tokenizer | None
    model: ComposedModel
    metadata: dict[str, Any]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer with the vocabulary of the run.

        Raises:
            SpecError: the recipe has none: its model reads no text (MV105).
        """
        if self.found_tokenizer is None:
            raise SpecError(Problem(code="MV105", text="the recipe has no `tokenizer` block: this model reads no text"))
        return self.found_tokenizer

    def pipeline(self) -> InputPipeline:
        """The input pipeline of the run, with its data. The data of the recipe must exist on this machine."""
        return build_pipeline(self.plan, build_source(self.plan), self.found_tokenizer)

    def image_transform(self) -> ImageTransform:
        """The transform that evaluation uses (centre crop, nothing random), from the recipe alone: needs no data."""
        return ImageTransform(self.plan.inputs, image_geometry(self.plan), is_training=False)

    def read_image(self, path: str | Path) -> Tensor:
        """One image file as the model expects it, on the model's device.

        Shape:
            (1, C, H, W).

        Raises:
            DataError: the file is no image that can be read (MV501).
        """
        transform = self.image_transform()
        image, _ = transform(read_gray(path, at_least=transform.least_side))
        return image[None].to(next(self.model.parameters()).device)


def load_run(folder: str | Path, *, device: str | torch.device = "cpu") -> LoadedRun:
    """Load a trained model from a run folder (its newest checkpoint) or from one checkpoint's folder.

    Needs neither training data nor the weights that training began with.

    The EMA weights if the run kept some (``train.ema_decay``), else those of the last step.

    Raises:
        DataError: a file is missing, cut off or does not fit the recipe (MV507), or the vocabulary is broken (MV506).
        SpecError: the recipe cannot be planned here, for instance because a bundle is not installed.

    Example:
        >>> run = load_run("runs/mpma_small-20260101-120000")  # doctest: +SKIP
        >>> features = run.model.encode_image(run.read_image("film.png"))  # doctest: +SKIP
    """
    folder = find_checkpoint(Path(folder))
    metadata = check_files(folder, WEIGHTS, EMA_WEIGHTS, TOKENIZER)
    if not (folder / RECIPE).is_file():  # it may have been edited: the data can lie elsewhere on this machine
        raise _broken(folder / RECIPE, "the file is missing")
    with skip_pretrained_init(), torch.random.fork_rng(devices=[]):
        plan = plan_recipe(folder / RECIPE, host=load_plugins())
        has_texts = plan.one(Role.TOKENIZER) is not None
        tokenizer = build_tokenizer(plan, folder=folder / TOKENIZER) if has_texts else None
        model = build_model(plan, seed=0)
    load_weights(model, folder / WEIGHTS)
    if (folder / EMA_WEIGHTS).is_file():
        load_ema(model, folder / EMA_WEIGHTS)
    return LoadedRun(plan=plan, found_tokenizer=tokenizer, model=model.to(device).eval(), metadata=metadata)


def load_weights(model: ComposedModel, path: Path) -> None:
    """Load a weights file into a model of the same architecture; every name and shape must match.

    Raises:
        DataError: the file is cut off, is no safetensors file, or belongs to another architecture (MV507).
    """
    try:
        safetensors.torch.load_model(model, str(path), strict=True)
    except (safetensors.SafetensorError, OSError) as error:
        raise _broken(path, f"the file cannot be read ({error})") from error
    except RuntimeError as error:
        details = tuple(line.strip() for line in str(error).splitlines()[1:9])
        hint = "the checkpoint's resolved.yaml was edited, or a bundle changed since; versions are in checkpoint.json"
        problem = Problem(code="MV507", text=f"{path}: the weights do not fit the recipe", details=details, hint=hint)
        raise DataError(problem) from error


def load_ema(model: nn.Module, path: Path) -> None:
    """Put EMA weights in the place of the trained ones."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in safetensors.torch.load_file(path).items():
            parameters[name].copy_(value)


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint's folder: ``folder`` itself, or the newest in ``folder/checkpoints``.

    Raises:
        DataError: there is none (MV507).
    """
    if (folder / METADATA).exists() or (folder / WEIGHTS).exists():
        return folder
    found = list_checkpoints(folder)
    if not found:
        raise _broken(folder, "there is no checkpoint")
    return found[-1]


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _broken(path, "the file is missing") from error
    except (OSError, ValueError) as error:
        raise _broken(path, f"the file cannot be read ({error})") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise _broken(path, f"checkpoint format {FORMAT} is supported, found {found!r}")
    return metadata


def _broken(path: Path, what: str) -> DataError:
    hint = "give a run folder, or a folder such as RUN/checkpoints/step-0000600; an interrupted copy has to be repeated"
    return DataError(Problem(code="MV507", text=f"{path}: {what}", hint=hint))
