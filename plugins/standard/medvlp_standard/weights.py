"""Reads checkpoints into image encoders and says exactly what matched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises for files with other objects; nothing is unpickled here
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medvlp_core.errors import Problem, SpecError

_LOG = logging.getLogger(__name__)
_WRAPPERS = ("state_dict", "model", "model_state")

#: ``(key, tensor of the checkpoint, tensor of the model)`` to a tensor that fits, or None if there is no way.
Adapt = Callable[[str, Tensor, Tensor], Tensor | None]


@attrs.frozen(kw_only=True)
class LoadedWeights:
    """What became of a checkpoint: tensors that fitted, that were resampled to fit, and that nothing asked for."""

    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched, {len(self.adapted)} adapted, {len(self.unused)} unused"
        return text + (f" ({', '.join(self.unused[:5])}{', ...' if len(self.unused) > 5 else ''})" if self.unused else "")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a PyTorch file that holds nothing but tensors and plain containers.

    Wrapping mappings (``{"model": ...}``, ``{"state_dict": ...}``) and DDP's ``module.`` are taken off.

    Raises:
        SpecError: the file is missing, broken or holds other objects (MV507).
    """
    file = Path(path).expanduser()
    try:
        is_safe = file.suffix == ".safetensors"
        found: Any = load_file(file) if is_safe else torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError) as error:
        hint = "expected .safetensors, or a .pt that torch.load(weights_only=True) accepts; save the plain state_dict again"
        text = f"the checkpoint {str(path)!r} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}"
        raise SpecError(Problem(code="MV507", text=text, hint=hint)) from error
    while isinstance(found, Mapping) and (inner := _wrapped(found)) is not None:
        found = inner
    pairs = found.items() if isinstance(found, Mapping) else ()
    tensors = {str(key).removeprefix("module."): value for key, value in pairs if isinstance(value, Tensor)}
    if not tensors:
        text = f"the checkpoint {str(path)!r} holds no named tensors"
        raise SpecError(Problem(code="MV507", text=text, hint="save model.state_dict()"))
    return tensors


def load_weights(module: nn.Module, path: str | Path, *, who: str, adapt: Adapt | None = None) -> LoadedWeights:
    """Fill every parameter and buffer of ``module`` from a checkpoint.

    Dots and underscores in names count as equal, because timm's feature models write ``stages_0`` where the full model writes
    ``stages.0``. The first convolution is adapted between one and three channels; ``adapt`` may fit further tensors.

    Raises:
        SpecError: the file cannot be read, or a tensor is missing or has another shape, with the names (MV507).
    """
    given = {_plain(key): (key, tensor) for key, tensor in read_weights(path).items()}
    own = module.state_dict()
    state, missing, misfits, adapted = {}, [], [], []
    for key, target in own.items():
        found = given.pop(_plain(key), None)
        if found is None:
            # Checkpoints of old PyTorch versions have no step counter in their batch norms, and nothing here uses it.
            missing += [key] if not key.endswith("num_batches_tracked") else []
            continue
        tensor = found[1]
        if tensor.shape != target.shape:
            fitted = _fit_channels(tensor, target)
            fitted = adapt(key, tensor, target) if fitted is None and adapt else fitted
            if fitted is None:
                misfits.append(f"{key}: {tuple(tensor.shape)} in the file, {tuple(target.shape)} in the model")
                continue
            adapted.append(key)
            tensor = fitted
        state[key] = tensor
    if missing or misfits:
        details = tuple(f"missing: {key}" for key in missing[:5]) + tuple(f"shape of {text}" for text in misfits[:5])
        text = f"{who}: {path!s} does not fit: {len(missing)} of {len(own)} tensors are missing, {len(misfits)} have another shape"
        hint = "the checkpoint must come from the same timm model, with the same width, depth and patch_size"
        raise SpecError(Problem(code="MV507", text=text, details=details, hint=hint))
    module.load_state_dict(state, strict=False)
    loaded = LoadedWeights(
        matched=tuple(key for key in state if key not in adapted),
        adapted=tuple(adapted),
        unused=tuple(key for key, _ in given.values()),
    )
    _LOG.info("%s: %s: %s", who, path, loaded)
    return loaded


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
