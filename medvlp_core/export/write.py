"""Writes an export: a new folder with weights, whatever loads them, and a README."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import attrs
import safetensors.torch
from safetensors import SafetensorError

from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError
from medvlp_core.export.card import model_card
from medvlp_core.export.onnx_graphs import export_onnx
from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn.interfaces import Exportable
from medvlp_core.plugins.import_string import load_object
from medvlp_core.spec.roles import Role
from medvlp_core.training.checkpoint import LoadedRun, load_run, weights_of

_TOWERS = {"timm": Role.IMAGE_ENCODER, "transformers": Role.TEXT_ENCODER}


@attrs.frozen(kw_only=True)
class Export:
    """What was written, and the lines of Python that load it from within ``folder``."""

    folder: Path
    files: tuple[str, ...]
    usage: str

    @property
    def usage_from_here(self) -> str:
        """The same lines for whoever stands where ``folder`` was named: its files get its name in front."""
        known = {".", *self.files, *(Path(file).parts[0] for file in self.files)}

        def located(quoted: re.Match[str]) -> str:
            name = quoted.group(1)
            return json.dumps((self.folder / name).as_posix(), ensure_ascii=False) if name in known else quoted.group()

        return re.sub(r'"([^"\n]*)"', located, self.usage)


def export_run(run: str | Path, kind: str, out: str | Path) -> Export:
    """Export a trained model to a new folder: the EMA weights if the run kept some, else those of the last step.

    Raises:
        DataError: the run cannot be loaded (MV507), or ``out`` is in use or cannot be written (MV510).
        SpecError: no part of the model can be exported like this, or the result differs from the model (MV510).
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _in_the_way(folder, "it is not empty" if folder.is_dir() else "it is a file")
    loaded = load_run(run)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usage = _write(loaded, kind, folder)
        (folder / "README.md").write_text(model_card(loaded, kind, usage), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        _clean_up(folder, is_new=is_new)
        raise _in_the_way(folder, getattr(error, "strerror", None) or str(error)) from error
    except BaseException:  # Ctrl-C, or a fault of a component
        _clean_up(folder, is_new=is_new)
        raise
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return Export(folder=folder, files=tuple(files), usage=usage)


def _clean_up(folder: Path, *, is_new: bool) -> None:
    """Take away what was written, so that the command can be repeated."""
    with suppress(OSError):  # it may not exist, and may not be writable: then nothing was written
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if is_new:
            folder.rmdir()


def _write(loaded: LoadedRun, kind: str, folder: Path) -> str:
    if kind == "onnx":
        return export_onnx(loaded, folder)
    if kind == "safetensors":
        safetensors.torch.save_file(
            {name: value.contiguous() for name, value in weights_of(loaded.model).items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        (folder / "resolved.yaml").write_text(loaded.plan.resolved_yaml(), encoding="utf-8")
        if loaded.found_tokenizer is not None:
            loaded.tokenizer.save(folder / "tokenizer")
        return 'from safetensors.torch import load_file\n\nweights = load_file("model.safetensors")  # names begin with the part'
    if kind == "transformers":
        loaded.tokenizer.save(folder)
    return _tower(loaded.model, kind).export(kind, folder)


def _tower(model: ComposedModel, kind: str) -> Exportable:
    """The encoder that can be exported to ``kind``.

    Raises:
        SpecError: the model has none (MV510).
    """
    role = _TOWERS[kind]
    component = model.plan.one(role)
    if component is None:
        raise SpecError(Problem(code="MV510", text=f"this model has no {role}, so there is nothing for {kind}"))
    module = getattr(model, role.value)
    if isinstance(module, Exportable) and kind in module.exports:
        return module
    text = f"{component.label} cannot be exported to {kind}"
    able = ", ".join(_who_can(model, role, kind)) or "none that is installed"
    hint = f"{role} components that can: {able}; --to safetensors takes every model, --to onnx those that torch can trace"
    raise SpecError(Problem(code="MV510", text=text, position=component.position(), hint=hint))


def _who_can(model: ComposedModel, role: Role, kind: str) -> list[str]:
    found = []
    for name, spec in model.plan.host.components.of_role(role).items():
        try:
            built = load_object(spec.declaration.build, owner=name, install=spec.declaration.install)
        except MedvlpError:
            continue  # a broken plugin can export nothing
        if kind in getattr(built, "exports", ()):
            found.append(name)
    return found


def _in_the_way(folder: Path, why: str) -> DataError:
    hint = "give a new or empty folder with --out"
    return DataError(Problem(code="MV510", text=f"the export cannot be written to {folder}: {why}", hint=hint))
