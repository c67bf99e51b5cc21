"""Checkpoints: a folder with the weights (safetensors), the recipe, the vocabulary and a few facts. No pickle."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import medvlp_core
from medvlp_core.build import build_model, build_pipeline, build_source, build_tokenizer, image_geometry
from medvlp_core.compose import plan_recipe
from medvlp_core.data.images import read_gray
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.data.transforms import ImageTransform
from medvlp_core.errors import DataError, Problem
from medvlp_core.interfaces import Tokenizer
from medvlp_core.model import ComposedModel
from medvlp_core.plan import ModelPlan

FORMAT = 1
WEIGHTS, FACTS, RECIPE, TOKENIZER = "model.safetensors", "checkpoint.json", "resolved.yaml", "tokenizer"


def save_checkpoint(folder: Path, *, plan: ModelPlan, model: ComposedModel, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Write a checkpoint to ``folder``, replacing an older one. It appears complete or not at all.

    ``facts`` (step, data fingerprint ...) go to ``checkpoint.json``, with the format number and the versions that wrote it.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / TOKENIZER).mkdir(parents=True)
    safetensors.torch.save_model(model, str(partial / WEIGHTS))
    (partial / RECIPE).write_text(plan.resolved_yaml(), encoding="utf-8")
    shutil.copymode(partial / RECIPE, partial / WEIGHTS)  # safetensors makes files that nobody else may read, whatever the umask
    tokenizer.save(partial / TOKENIZER)
    versions = {"medvlp": medvlp_core.__version__, "torch": torch.__version__}
    text = json.dumps({"format": FORMAT, **facts, "versions": versions}, indent=2)
    (partial / FACTS).write_text(text + "\n", encoding="utf-8")
    # A folder cannot be replaced in one step: the old one is moved away first.
    outdated = folder.with_name(f".{folder.name}.outdated")
    shutil.rmtree(outdated, ignore_errors=True)
    if folder.exists():
        os.replace(folder, outdated)
    os.replace(partial, folder)
    shutil.rmtree(outdated, ignore_errors=True)


@attrs.frozen(kw_only=True)
class LoadedRun:
    """A trained model, ready to use: ``model`` is in evaluation mode. ``facts`` is the content of ``checkpoint.json``."""

    plan: ModelPlan
    tokenizer: Tokenizer
    model: ComposedModel
    facts: dict[str, Any]

    def pipeline(self) -> InputPipeline:
        """The input pipeline of the run, with its data. The data of the recipe must exist on this machine."""
        return build_pipeline(self.plan, build_source(self.plan), self.tokenizer)

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
    """Load a trained model from a run folder (its newest checkpoint) or from one checkpoint's folder. Needs no training data.

    Raises:
        DataError: a file is missing, cut off or does not fit the recipe (MV507), or the vocabulary is broken (MV506).
        SpecError: the recipe cannot be planned here, for instance because a bundle is not installed.

    Example:
        >>> run = load_run("runs/mpma_small-20260101-120000")  # doctest: +SKIP
        >>> features = run.model.encode_image(run.read_image("film.png"))  # doctest: +SKIP
    """
    folder = find_checkpoint(Path(folder))
    facts = _read_facts(folder / FACTS)
    for name in (RECIPE, WEIGHTS):
        if not (folder / name).is_file():
            raise _broken(folder / name, "the file is missing")
    plan = plan_recipe(folder / RECIPE)
    tokenizer = build_tokenizer(plan, folder=folder / TOKENIZER)
    with torch.random.fork_rng(devices=[]):
        model = build_model(plan, seed=0)
    load_weights(model, folder / WEIGHTS)
    return LoadedRun(plan=plan, tokenizer=tokenizer, model=model.to(device).eval(), facts=facts)


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


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint's folder: ``folder`` itself, or the newest in ``folder/checkpoints``.

    Raises:
        DataError: there is none (MV507).
    """
    if (folder / FACTS).exists() or (folder / WEIGHTS).exists():
        return folder
    # Names are step-0000600: zero-padded, so they sort by step. Hidden folders are left-overs of an interrupted write.
    found = sorted(path for path in (folder / "checkpoints").glob("step-*") if path.is_dir())
    if not found:
        raise _broken(folder, "there is no checkpoint")
    return found[-1]


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _broken(path, "the file is missing") from error
    except (OSError, ValueError) as error:
        raise _broken(path, f"the file cannot be read ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise _broken(path, f"checkpoint format {FORMAT} is supported, found {found!r}")
    return facts


def _broken(path: Path, what: str) -> DataError:
    hint = "give a run folder, or a folder such as RUN/checkpoints/step-0000600; an interrupted copy has to be repeated"
    return DataError(Problem(code="MV507", text=f"{path}: {what}", hint=hint))
