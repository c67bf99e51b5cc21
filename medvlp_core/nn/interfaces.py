"""One abstract class per role. A module implements its role's class and is built as ``Class(spec, dims)``.

``spec`` holds the component's parameters, ``dims`` maps the symbols of its contract to the numbers that the composer solved.
Classes here are abstract or final: implement the abstract methods, override nothing else, wrap library models instead of
subclassing them. ``forward`` is called with keyword arguments, one for each key of the contract's ``needs``; modules return the
NamedTuple of their role, whose field names are ports (or a NamedTuple of your own with further ports).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from medvlp_core.nn.batch import FusedFeatures, ImageFeatures, MaskPlan, Output
from medvlp_core.spec.contract import Dims


def _abstract() -> Any:
    """A method that every component defines with arguments of its own: its needs. The type of what it returns is fixed.

    Declared as ``forward: Callable[..., FusedFeatures]``, as ``nn.Module`` does, because no signature fits all needs.
    """

    def forward(self: nn.Module, **needs: Tensor) -> Any:
        raise NotImplementedError

    return abstractmethod(forward)


class Masking(nn.Module, ABC):
    """Decides what is masked in the masked view. Sees both modalities. Draws from torch's global random state."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    forward: Callable[..., MaskPlan] = _abstract()
    """Draw a plan for one batch."""


class ImageEncoder(nn.Module, ABC):
    """Image to patch tokens."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    forward: Callable[..., ImageFeatures] = _abstract()
    """Encode (B, C, H, W). With ``image_is_masked`` (B, N) masked patches have no influence on the output."""


class TextEncoder(nn.Module, ABC):
    """Token ids to contextual tokens, in two stages so that a fusion may act between them (MRM, ECAMP)."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """Token and position embeddings: (B, L) to (B, L, Dt)."""

    @abstractmethod
    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Tensor:
        """The contextual layers: (B, L, Dt) to (B, L, Dt). Padding must not influence valid positions."""

    def forward(self, token_ids: Tensor, text_is_valid: Tensor) -> Tensor:
        """Final. ``encode(embed(token_ids), text_is_valid)``."""
        return self.encode(self.embed(token_ids), text_is_valid)


class Fusion(nn.Module, ABC):
    """Brings image information into text tokens (or the reverse)."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    forward: Callable[..., FusedFeatures] = _abstract()
    """Fuse one view."""


@runtime_checkable
class HasAttentionMaps(Protocol):
    """A fusion or alignment that can show which patches a word looked at, at least with some of its parameters."""

    def attention_maps(self, **needs: Tensor) -> Tensor | None:
        """(B, L, N) weights, rows of valid tokens sum to 1; None where it has nothing to tell. Same arguments as ``forward``."""
        ...


@runtime_checkable
class ChoosesKernels(Protocol):
    """Any module of a model that calls ops with several implementations (medvlp_core.kernels); a run's header names its choices."""

    def kernel_choices(self, device: str, dtype: str) -> dict[str, str]:
        """Ops by name, and the path that serves their calls with tensors of this torch device type and dtype name.

        ``dtype`` is what autocast makes of the run's precision. Asked in training mode, before the first step.

        Raises:
            KernelError: a path that was asked for cannot serve (MV401).
        """
        ...


@runtime_checkable
class Exportable(Protocol):
    """An encoder around a library's model: its weights can go there (``medvlp export``) and come from there (``init_from``)."""

    #: What it can be exported to: ``timm``, ``transformers``.
    exports: tuple[str, ...]

    def export(self, kind: str, folder: Path) -> str:
        """Write files that the library loads to the same features; returns the Python lines that load them from ``folder``.

        Raises:
            SpecError: the library's model does not give the same features (MV510).
        """
        ...

    def library_names(self) -> dict[str, str]:
        """The names of the library's tensors, each with the name that the tensor has here."""
        ...

    def fit_weight(self, name: str, found: Tensor, own: Tensor) -> Tensor | None:
        """Resize a tensor of another model, under the name that it has here; None if there is no way."""
        ...


@runtime_checkable
class ReportsStatistics(Protocol):
    """Any module of a model that has numbers to tell of each training step, e.g. the share of its memory in use."""

    def statistics(self) -> dict[str, Tensor]:
        """Scalars by name, of the forward and backward passes since it was asked last; empty without any.

        Asked after the last backward pass of every step. The names must be the same in all processes, and nothing here may wait
        for the device: the numbers are fetched together with the losses.
        """
        ...


@runtime_checkable
class HasAfterStep(Protocol):
    """A module with state that is no weight, such as a queue of vectors or prototypes; its contract says what it gets (``after``).

    The state lies in persistent buffers of the module, which nothing but ``after_step`` changes.
    """

    def after_step(self, **rows: Tensor) -> None:
        """Take in the rows of a step that changed the weights, all records of the step in their order, without gradient.

        Every process is handed the same rows, with the same random state, and computes the same.
        """
        ...


class Part(nn.Module, ABC):
    """Anything else between other modules, with any needs and any gives: a pooling, a temporal module, a projection, a tower."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    forward: Callable[..., Tensor | Output] = _abstract()
    """The tensor of the port that it gives, or an Output with several."""


class Alignment(nn.Module, ABC):
    """Pulls images and their texts together: a contrastive or matching loss.

    With the calls ``embed_image`` and ``embed_text``, which take what the spec says and return (B, E), it gives vectors of both in
    a shared space.
    """

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    forward: Callable[..., Output] = _abstract()
    """The loss terms that the contract declares, scalars, unweighted."""


class Decoder(nn.Module, ABC):
    """Reconstructs what was masked, or writes, and measures how well.

    One that writes texts may have a call ``generate`` of its own, which goes before the core's loop: it takes what the spec says,
    ``token_ids`` among it, starts each text with their first column, and returns (B, G) ids, behind the end of a text whatever it
    likes. By keyword it gets ``max_length`` too, and the options that a user gave; each of them needs a default.
    """

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    forward: Callable[..., Output] = _abstract()
    """Losses (unweighted scalars) and predictions."""
