"""Reads files with weights and fits them into a module, and says exactly what became of every tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for files with other objects; nothing is unpickled here
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medvlp_core.errors import Problem, SpecError, first_line

#: What files of torch.save begin with: a zip archive, or a pickle of old versions.
_BEGINNINGS = (b"PK", b"\x80")
_WRAPPERS = ("state_dict", "model", "model_state")

#: ``(key, tensor of the checkpoint, tensor of the model)`` to a tensor that fits, or None if there is no way.
Adapt = Callable[[str, Tensor, Tensor], Tensor | None]


@attrs.frozen(kw_only=True)
class LoadedWeights:
    """What became of a checkpoint, by name.

    ``matched`` tensors were taken as they are, ``adapted`` ones resized or resampled to fit. The model keeps its own values of
    those that are ``missing`` in the checkpoint and of ``misfits``, which have another shape there. Nothing asked for ``unused``.
    """

    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = [f"{len(self.matched)} tensors matched", f"{len(self.adapted)} resized"]
        counts += [_named(names, what) for names, what in ((self.missing, "missing"), (self.misfits, "of another shape")) if names]
        return ", ".join([*counts, _named(self.unused, "unused")])


def _named(names: tuple[str, ...], what: str) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else "")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a PyTorch file that holds nothing but tensors and plain containers.

    Wrapping mappings (``{"model": ...}``, ``{"state_dict": ...}``) and DDP's ``module.`` are taken off.

    Raises:
        SpecError: the file is missing, broken or holds other objects (MV507).
    """
    file = Path(path).expanduser()
    try:
        is_safe = file.suffix == ".safetensors"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, about files that it then refuses
            found: Any = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        hint = "expected .safetensors, or a .pt that torch.load(weights_only=True) accepts; save the plain state_dict again"
        text = f"the checkpoint {str(path)!r} cannot be read: {_reason(file, error)}"
        raise SpecError(Problem(code="MV507", text=text, hint=hint)) from error
    while isinstance(found, Mapping) and (inner := _wrapped(found)) is not None:
        found = inner
    pairs = found.items() if isinstance(found, Mapping) else ()
    tensors = {str(key).removeprefix("module."): value for key, value in pairs if isinstance(value, Tensor)}
    if not tensors:
        text = f"the checkpoint {str(path)!r} holds no named tensors"
        raise SpecError(Problem(code="MV507", text=text, hint="save model.state_dict()"))
    return tensors


def _reason(file: Path, error: Exception) -> str:
    """Why a file cannot be read; in own words where torch would advise to run what is in it."""
    if file.suffix != ".safetensors" and not isinstance(error, OSError):
        with file.open("rb") as stream:
            is_of_torch = stream.read(2).startswith(_BEGINNINGS)
        if not is_of_torch:
            return "it is no file of torch.save"
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            return "it holds a pickle of other things than tensors as torch.save writes them; nothing of it was loaded"
    return f"{type(error).__name__}: {first_line(error)}"


def fit_weights(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, adapt: Adapt | None = None
) -> tuple[dict[str, Tensor], LoadedWeights]:
    """Values for the tensors of a model, and what became of each.

    Dots and underscores in names count as equal, because timm's feature models write ``stages_0`` where the full model writes
    ``stages.0``. The first convolution is adapted between one and three channels; ``adapt`` may fit further tensors.
    """
    left = {_plain(key): (key, tensor) for key, tensor in given.items()}
    values: dict[str, Tensor] = {}
    matched, adapted, missing, misfits = [], [], [], []
    for key, target in own.items():
        found = left.pop(_plain(key), None)
        if found is None:
            # Checkpoints of old PyTorch versions have no step counter in their batch norms, and nothing here uses it.
            missing += [key] if not key.endswith("num_batches_tracked") else []
            continue
        tensor: Tensor | None = found[1]
        assert tensor is not None
        shape = tuple(tensor.shape)
        if shape == tuple(target.shape):
            matched.append(key)
        else:
            fitted = _fit_channels(tensor, target)
            tensor = adapt(key, tensor, target) if fitted is None and adapt else fitted
            if tensor is None:
                misfits.append(f"{key}: {shape} in the file, {tuple(target.shape)} in the model")
                continue
            adapted.append(key)
        values[key] = tensor
    loaded = LoadedWeights(
        matched=tuple(matched),
        adapted=tuple(adapted),
        missing=tuple(missing),
        misfits=tuple(misfits),
        unused=tuple(key for key, _ in left.values()),
    )
    return values, loaded


def _fit_channels(tensor: Tensor, target: Tensor) -> Tensor | None:
    """Kernels for gray and colour input, such that a gray image gives the same response as its three equal channels."""
    is_kernel = tensor.ndim == target.ndim == 4 and tensor.shape[0] == target.shape[0] and tensor.shape[2:] == target.shape[2:]
    if is_kernel and (tensor.shape[1], target.shape[1]) == (3, 1):
        return tensor.sum(dim=1, keepdim=True)
    if is_kernel and (tensor.shape[1], target.shape[1]) == (1, 3):
        return tensor.expand(-1, 3, -1, -1) / 3
    return None


def _wrapped(found: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    return next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)


def _plain(key: str) -> str:
    return key.replace(".", "_")
