"""Image encoders over timm: vision transformers that drop masked patches, and feature maps of convolutional networks.

Shape letters: B batch, C channels, S image side in pixels, GH GW grid, N = GH * GW patches, Nv visible patches, P prefix tokens,
Di width.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from medvlp_core import DataError, Dims, Problem, SpecError, is_skipping_pretrained_init
from medvlp_core.model import LoadedWeights
from medvlp_core.nn import ImageEncoder, ImageFeatures, sincos_positions_2d
from medvlp_standard.hf_facts import local_folder
from medvlp_standard.hub import hub_answers, quiet_hub
from medvlp_standard.specs.image_encoders import TimmCNNSpec, TimmViTSpec
from medvlp_standard.timm_export import export_timm
from medvlp_standard.timm_facts import base_name, cnn_facts
from medvlp_standard.timm_weights import load_weights
from medvlp_standard.view_norm import MaskedStatistics

_VIT_HINT = "standard.timm_vit takes VisionTransformers, timm.list_models('vit_*'); for feature maps use standard.timm_cnn"
_CNN_HINT = "standard.timm_cnn takes models with feature maps, such as timm.list_models('resnet*') or 'convnext*'"


class TimmViT(ImageEncoder):
    """A timm VisionTransformer, wrapped: ``tokens = norm(blocks(norm_pre([prefix; (patches + positions)[visible]])))``.

    Without masked patches the tokens are timm's ``forward_features``. In the masked view the visible patches are gathered after
    the positions were added, so the blocks see only them; masked patches cost nothing and have no influence.

    Reference:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; dropping of masked patches as in He et al., Masked
        Autoencoders Are Scalable Vision Learners, CVPR 2022 (there in shuffled order, here in raster order: the blocks do not see
        the order).
    """

    exports = ("timm",)

    def __init__(self, spec: TimmViTSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        sizes = {"patch_size": spec.patch_size, "embed_dim": spec.width, "depth": spec.depth, "num_heads": spec.heads}
        self.model = spec.model
        self.arguments: dict[str, Any] = {
            "img_size": spec.image_size,
            "in_chans": spec.channels,
            "num_classes": 0,
            **{name: size for name, size in sizes.items() if size is not None},
        }
        pretrained = None if is_skipping_pretrained_init() else spec.pretrained
        vit = _create(spec.model, pretrained, hint=_VIT_HINT, drop_path_rate=spec.drop_path, **self.arguments)
        if not isinstance(vit, VisionTransformer):
            text = f"{spec.model} is of class {type(vit).__name__}, and standard.timm_vit needs a VisionTransformer"
            raise SpecError(Problem(code="MV303", text=text, hint=_VIT_HINT))
        # Pooling, its norm and the classifier are timm's head; left in, their parameters would never get a gradient.
        vit.reset_classifier(0, "")
        vit.fc_norm = nn.Identity()
        if not spec.norm:
            vit.norm = nn.Identity()
        self.vit = vit
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.loaded: LoadedWeights | None = None
        if pretrained not in (None, "hub"):
            self.loaded = load_weights(vit, str(pretrained), who="standard.timm_vit", adapt=self._resample)
        if spec.positions == "sincos":
            self._fix_positions()

    def dims(self) -> dict[str, int]:
        """The sizes of the built model, by the symbols of its contract."""
        rows, columns = self.grid
        return {"GH": rows, "GW": columns, "N": rows * columns, "P": self.vit.num_prefix_tokens, "Di": self.vit.embed_dim}

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Encode a batch.

        Shape:
            image (B, C, S, S), image_is_masked (B, N) bool with the same number of masked patches in every row, or None;
            image_tokens (B, Nv, Di) in raster order, image_prefix (B, P, Di).

        Raises:
            DataError: ``image_is_masked`` has another shape, or rows with different counts (MV505).
        """
        vit, prefix = self.vit, self.vit.num_prefix_tokens
        if image_is_masked is not None and type(vit.patch_embed) is not PatchEmbed:
            # A convolutional stem looks over the patch's edge.
            image = mask_cells(image, image_is_masked, self.grid)
        # timm's own method knows where class token, registers and positions go in each of its variants.
        tokens = vit._pos_embed(vit.patch_embed(image))
        if image_is_masked is not None:
            visible = gather_visible(tokens[:, prefix:], image_is_masked)
            tokens = torch.cat([tokens[:, :prefix], visible], dim=1)
        tokens = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        return ImageFeatures(image_tokens=tokens[:, prefix:], image_prefix=tokens[:, :prefix])

    def library_names(self) -> dict[str, str]:
        """timm's names; positions that are fixed take nothing from a file."""
        table = self.vit.pos_embed
        is_fixed = table is not None and not table.requires_grad
        return {name: f"vit.{name}" for name in self.vit.state_dict() if not (is_fixed and name == "pos_embed")}

    def fit_weight(self, name: str, found: Tensor, own: Tensor) -> Tensor | None:
        """Positions resampled to this grid."""
        return self._resample(name.removeprefix("vit."), found, own)

    def export(self, kind: str, folder: Path) -> str:
        """timm's own transformer, without pooling and head: ``forward_features`` gives prefix tokens and patch tokens.

        Raises:
            SpecError: timm's model does not give the same features (MV510).
        """
        # No pooling, and no norm behind it; see __init__. Distilled models know one way of pooling only, without weights.
        arguments = {**self.arguments, "fc_norm": False}
        if not hasattr(self.vit, "head_dist"):
            arguments["global_pool"] = ""
        if isinstance(self.vit.norm, nn.Identity):
            arguments["final_norm"] = False
        return export_timm(
            folder,
            model=base_name(self.model),
            arguments=arguments,
            weights=self.vit.state_dict(),
            image_shape=(self.arguments["in_chans"], self.arguments["img_size"], self.arguments["img_size"]),
            features=lambda image: torch.cat(tuple(reversed(self(image))), dim=1),
            theirs=lambda model, image: model.forward_features(image),  # type: ignore[operator]
            usage=f"model.forward_features(images)  # (B, {self.vit.num_prefix_tokens} prefix + N patch tokens, Di)",
        )

    def _resample(self, key: str, tensor: Tensor, target: Tensor) -> Tensor | None:
        """Resample learned positions of another image size to this grid; the file's grid must be square."""
        count = self.grid[0] * self.grid[1]
        prefix = target.shape[1] - count if target.ndim == 3 else -1
        side = int((tensor.shape[1] - prefix) ** 0.5) if tensor.ndim == 3 and prefix >= 0 else 0
        if key != "pos_embed" or side == 0 or side * side != tensor.shape[1] - prefix or tensor.shape[2] != target.shape[2]:
            return None
        return resample_abs_pos_embed(tensor, new_size=list(self.grid), old_size=[side, side], num_prefix_tokens=prefix)

    def _fix_positions(self) -> None:
        """Overwrite the positions with fixed sine-cosine vectors, 0 at prefix tokens, and freeze them.

        Raises:
            SpecError: the model has no table of positions (MV303), or 4 does not divide its width (MV203).
        """
        table = self.vit.pos_embed
        if table is None:
            text = "positions=sincos needs a model with a table of positions, and this one has none"
            raise SpecError(Problem(code="MV303", text=text, hint="set positions: learned, which keeps timm's own"))
        fixed = sincos_positions_2d(self.vit.embed_dim, *self.grid).to(table)
        prefix = table.shape[1] - fixed.shape[0]
        table.requires_grad_(False)
        table.zero_()[0, prefix:] = fixed


class TimmCNN(ImageEncoder):
    """A feature map of a timm model, one token for each cell: ``tokens = flatten(stage(image with masked cells = 0))``.

    All N tokens stay in the masked view. A token at a masked cell still sees its visible neighbours, as far as the receptive field
    reaches; masked pixels are replaced before the first layer and have no influence. Batch norms keep statistics for each view.
    """

    exports = ("timm",)

    def __init__(self, spec: TimmCNNSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.model = spec.model
        self.image_shape = (spec.channels, spec.image_size, spec.image_size)
        self.arguments = {"in_chans": spec.channels, "features_only": True, "out_indices": (_stage(spec),)}
        pretrained = None if is_skipping_pretrained_init() else spec.pretrained
        self.net = _create(spec.model, pretrained, hint=_CNN_HINT, **self.arguments)
        self.loaded: LoadedWeights | None = None
        if pretrained not in (None, "hub"):
            self.loaded = load_weights(self.net, str(pretrained), who="standard.timm_cnn")
        self.masked_statistics = MaskedStatistics(self.net)
        self.is_channel_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        # One blank image tells the true grid, whatever the model's padding rules are. It draws no random numbers.
        # In evaluation mode, so that batch norms do not count it.
        self.net.eval()
        with torch.no_grad():
            features = self._features(torch.zeros(1, spec.channels, spec.image_size, spec.image_size))
        self.net.train()
        self.grid: tuple[int, int] = (features.shape[2], features.shape[3])
        self.width = features.shape[1]
        if spec.image_size % self.grid[0] or spec.image_size % self.grid[1]:
            text = f"image_size={spec.image_size} cannot be cut into the {self.grid[0]} x {self.grid[1]} cells of this stage"
            raise SpecError(Problem(code="MV303", text=text, hint="use a multiple of the stage's reduction, e.g. of 32"))

    def dims(self) -> dict[str, int]:
        """The sizes of the built model, by the symbols of its contract."""
        rows, columns = self.grid
        return {"GH": rows, "GW": columns, "N": rows * columns, "Di": self.width}

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Encode a batch.

        Shape:
            image (B, C, S, S), image_is_masked (B, N) bool or None; image_tokens (B, N, Di), image_prefix (B, 0, Di).

        Raises:
            DataError: ``image_is_masked`` has another shape (MV505).
        """
        if image_is_masked is not None:
            image = mask_cells(image, image_is_masked, self.grid)
        with self.masked_statistics.of_view(is_masked=image_is_masked is not None):
            features = self._features(image)
        tokens = features.flatten(2).transpose(1, 2)
        return ImageFeatures(image_tokens=tokens, image_prefix=tokens[:, :0])

    def library_names(self) -> dict[str, str]:
        """timm's names, as its feature models write them."""
        return {name: f"net.{name}" for name in self.net.state_dict()}

    def fit_weight(self, name: str, found: Tensor, own: Tensor) -> Tensor | None:
        """Nothing can be resized but the first convolution, and the core does that."""
        return None

    def export(self, kind: str, folder: Path) -> str:
        """timm's feature model up to this stage, with the batch norm statistics of whole images.

        Raises:
            SpecError: timm's model does not give the same features (MV510).
        """
        with self.masked_statistics.of_view(is_masked=False):
            weights = {name: value.clone() for name, value in self.net.state_dict().items()}
        return export_timm(
            folder,
            model=base_name(self.model),
            arguments=self.arguments,
            weights=weights,
            image_shape=self.image_shape,
            features=lambda image: self(image).image_tokens,
            theirs=lambda model, image: self._channels_first(model(image)[0]).flatten(2).transpose(1, 2),
            usage=f"model(images)[0]  # a feature map of {self.grid[0]} x {self.grid[1]} cells",
        )

    def _features(self, image: Tensor) -> Tensor:
        return self._channels_first(self.net(image)[0])

    def _channels_first(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2) if self.is_channel_last else features


def gather_visible(tokens: Tensor, image_is_masked: Tensor) -> Tensor:
    """The visible tokens of every row, in raster order.

    Shape:
        tokens (B, N, D), image_is_masked (B, N) bool, result (B, Nv, D).

    Raises:
        DataError: another shape, or rows that mask different numbers of patches (MV505).
    """
    _check_shape(image_is_masked, (tokens.shape[0], tokens.shape[1]))
    counts = (~image_is_masked).sum(dim=1).tolist()
    if len(set(counts)) > 1:
        text = f"image_is_masked leaves {min(counts)} to {max(counts)} patches visible; the rows of a batch must agree"
        raise DataError(Problem(code="MV505", text=text, hint="a masking masks the same number of patches in every image"))
    return tokens[~image_is_masked].reshape(tokens.shape[0], counts[0], tokens.shape[2])


def mask_cells(image: Tensor, image_is_masked: Tensor, grid: tuple[int, int]) -> Tensor:
    """Set the pixels of masked cells to 0, which is the mean grey after normalisation.

    Shape:
        image (B, C, H, W), image_is_masked (B, N) bool with N = grid rows * columns, result (B, C, H, W).

    Raises:
        DataError: ``image_is_masked`` has another shape (MV505).
    """
    batch, _, height, width = image.shape
    rows, columns = grid
    _check_shape(image_is_masked, (batch, rows * columns))
    cells = image_is_masked.reshape(batch, 1, rows, 1, columns, 1)
    cells = cells.expand(batch, 1, rows, height // rows, columns, width // columns)
    return image.masked_fill(cells.reshape(batch, 1, height, width), 0.0)


def _check_shape(image_is_masked: Tensor, wanted: tuple[int, int]) -> None:
    if tuple(image_is_masked.shape) != wanted or image_is_masked.dtype != torch.bool:
        text = f"image_is_masked is {tuple(image_is_masked.shape)} {image_is_masked.dtype}, expected {wanted} torch.bool"
        raise DataError(Problem(code="MV505", text=text, hint="one value for each patch of the encoder's grid, True = masked"))


def _stage(spec: TimmCNNSpec) -> int:
    """The stage counted from 0, as every timm version takes it."""
    if spec.stage >= 0:
        return spec.stage
    facts = cnn_facts(spec.model)
    if facts is not None:
        return len(facts.channels) + spec.stage
    return len(_create(spec.model, None, hint=_CNN_HINT, features_only=True).feature_info.channels()) + spec.stage


def _create(model: str, pretrained: str | None, *, hint: str, **options: Any) -> Any:
    """Make a timm model; every failure becomes a message about the recipe.

    Raises:
        SpecError: an unknown name or options that the model refuses (MV303), or weights that cannot be had (MV507).
    """
    if not timm.is_model(base_name(model)):
        near = difflib.get_close_matches(base_name(model), timm.list_models(), n=3)
        other = f"did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() shows all names"
        raise SpecError(Problem(code="MV303", text=f"timm {timm.__version__} has no model {model!r}", hint=other))
    try:
        if pretrained != "hub":
            return timm.create_model(model, pretrained=False, **options)
        config = timm.get_pretrained_cfg(model)
        repository = config.hf_hub_id if config is not None else None
        if repository and local_folder(repository) is None and not hub_answers(repository):
            raise ConnectionError(f"the Hugging Face hub does not answer, and {repository} is not in its cache")
        with quiet_hub():
            return timm.create_model(model, pretrained=True, **options)
    except Exception as error:
        is_hub = pretrained == "hub"
        text = f"timm could not make {model!r}{' with its weights' if is_hub else ''}: {type(error).__name__}: {error}"
        if is_hub:
            hint = "weights come over the network once; download them beforehand, or give the path of a checkpoint file"
        raise SpecError(Problem(code="MV507" if is_hub else "MV303", text=text, hint=hint)) from error
