"""One abstract class per role. A module implements its role's class and is built as ``Class(spec, dims)``.

``spec`` holds the component's parameters, ``dims`` maps the symbols of its contract to the numbers that the composer solved.
Classes here are abstract or final: implement the abstract methods, override nothing else, wrap library models instead of
subclassing them. ``forward`` is called with keyword arguments, one for each key of the contract's ``needs``; modules return the
NamedTuple of their role, whose field names are ports (or a NamedTuple of your own with further ports).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs
from torch import Tensor, nn

from medvlp_core.batch import DecoderOutput, FusedFeatures, ImageFeatures, MaskPlan, TokenBatch

if TYPE_CHECKING:
    from medvlp_core.data.pipeline import InputPipeline
    from medvlp_core.evaluate.protocol import Card, EvaluationRun

Dims = Mapping[str, int]


@attrs.frozen(kw_only=True)
class Record:
    """One image with its text, as a data source gives it.

    ``labels`` maps a label's name to 0 or 1 (a missing name = unknown). ``text_kind`` says where the text comes from:
    ``report`` or ``clinical_note`` (written by clinicians), ``qa`` (clinicians' question-answer pairs), ``template`` (made from
    labels), ``none``.
    """

    id: str
    image_path: Path
    text: str
    text_kind: str = "report"
    labels: Mapping[str, int] = attrs.field(factory=dict)
    patient_id: str | None = None


class DataSource(ABC):
    """Records by split. Reading and transforming pixels is the input pipeline's work (medvlp_core.data)."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, e.g. ``("train", "val", "test")``."""

    @abstractmethod
    def records(self, split: str) -> Sequence[Record]:
        """The records of one split, always in the same order.

        Raises:
            DataError: the split does not exist (MV503).
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash over ids, texts, labels and splits; it is written into the run folder."""


class Tokenizer(ABC):
    """Text to ids. Position 0 is [CLS]; texts are cut to the maximum length."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from the training texts; does nothing for a tokenizer that came trained."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise; padded to the longest text of the batch, at most the maximum length."""

    @abstractmethod
    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The printable form of each id; continuation pieces start with ``##``."""

    @abstractmethod
    def dims(self) -> dict[str, int]:
        """Actual numbers for the symbols of its contract: ``V`` and ``Mask`` once fitted."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` needs."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Restore a saved vocabulary; afterwards it counts as fitted.

        Raises:
            DataError: files are missing or broken (MV506).
        """


class Masking(nn.Module, ABC):
    """Decides what the masked view hides. Sees both modalities. Draws from torch's global random state."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, **needs: Tensor) -> MaskPlan:
        """Draw a plan for one batch."""


class ImageEncoder(nn.Module, ABC):
    """Image to patch tokens."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Encode (B, C, H, W). With ``image_is_masked`` (B, N) hidden patches have no influence on the output."""


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

    @abstractmethod
    def forward(self, **needs: Tensor) -> FusedFeatures:
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


class Alignment(nn.Module, ABC):
    """Pulls images and their texts together: a contrastive or matching loss."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, **needs: Tensor) -> dict[str, Tensor]:
        """The loss terms that the contract declares, scalars, unweighted."""

    @abstractmethod
    def embed_image(self, image_tokens: Tensor, image_prefix: Tensor) -> Tensor:
        """L2-normalised image vectors in the shared space: (B, N, Di), (B, P, Di) to (B, E)."""

    @abstractmethod
    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> Tensor:
        """L2-normalised text vectors in the shared space: (B, L, Dt) to (B, E)."""


class Decoder(nn.Module, ABC):
    """Restores what was hidden and measures how well."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, **needs: Tensor) -> DecoderOutput:
        """Losses (unweighted scalars) and the prediction."""


class Evaluator(ABC):
    """A held-out check with its trivial baselines, or a set of pictures."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """Why this evaluator cannot work on this data (no such split, a label that nobody has); None if it can.

        Asked before the first training step, with the split that it will look at. Must not read images.
        """

    @abstractmethod
    def evaluate(self, run: EvaluationRun) -> Card:
        """Evaluate the model of ``run``. Must leave the model, its mode and torch's random state as they were."""
