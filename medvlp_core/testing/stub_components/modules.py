"""The stub components that are torch modules: as few layers as the role allows, with everything that the role asks for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import (
    Alignment,
    CrossAttentionBlock,
    Decoder,
    FusedFeatures,
    Fusion,
    ImageEncoder,
    ImageFeatures,
    LearnedScale,
    Masking,
    MaskPlan,
    Output,
    Part,
    SelfAttentionBlock,
    TextEncoder,
    insert_mask_tokens,
    masked_mean,
    masked_patch_loss,
    patchify,
    random_patch_mask,
    random_word_mask,
    symmetric_info_nce,
    visible_count,
    word_loss,
)
from medvlp_core.testing.stub_components.specs import (
    AlignmentSpec,
    FusionSpec,
    ImageDecoderSpec,
    ImageEncoderSpec,
    MaskingSpec,
    ReportDecoderSpec,
    SourceSpec,
    SquaredErrorSpec,
    TextEncoderSpec,
)


class RandomMasking(Masking):
    """Masks patches and whole words, each modality on its own."""

    def __init__(self, spec: MaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.mask_id = dims["Mask"]
        self.patches = dims["GH"] * dims["GW"]

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> MaskPlan:
        """Draw a plan for one batch."""
        visible = visible_count(self.patches, self.spec.image_ratio)
        text_is_masked = random_word_mask(word_ids, text_is_valid, self.spec.text_ratio, whole_words=True)
        return MaskPlan(
            image_is_masked=random_patch_mask(len(token_ids), self.patches, visible, token_ids.device),
            text_is_masked=text_is_masked,
            token_ids=token_ids.masked_fill(text_is_masked, self.mask_id),
        )


class PatchEncoder(ImageEncoder):
    """Patches to tokens, each with its position; masked ones are dropped, or a mask token stands in their place."""

    def __init__(self, spec: ImageEncoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.grid = (spec.rows, spec.columns)
        pixels = spec.channels * (spec.height // spec.rows) * (spec.width // spec.columns)
        self.embed = nn.Linear(pixels, spec.token_width)
        self.positions = nn.Parameter(torch.randn(spec.rows * spec.columns, spec.token_width) * 0.02)
        self.prefix = nn.Parameter(torch.randn(spec.prefix, spec.token_width) * 0.02) if spec.prefix else None
        self.mask_token = nn.Parameter(torch.randn(spec.token_width) * 0.02) if spec.layout == "replaced" else None
        self.block = SelfAttentionBlock(spec.token_width, spec.heads, 2 * spec.token_width)
        self.norm = nn.LayerNorm(spec.token_width)

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Encode all patches, or without the pixels of the masked ones."""
        tokens = self.embed(patchify(image, *self.grid))
        if image_is_masked is not None and self.mask_token is not None:
            tokens = torch.where(image_is_masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = tokens + self.positions
        if image_is_masked is not None and self.mask_token is None:
            tokens = visible_tokens(tokens, image_is_masked)
        count = 0
        if self.prefix is not None:
            count = len(self.prefix)
            tokens = torch.cat([self.prefix.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.norm(self.block(tokens))
        return ImageFeatures(image_tokens=tokens[:, count:], image_prefix=tokens[:, :count])


def visible_tokens(tokens: Tensor, is_masked: Tensor) -> Tensor:
    """The tokens that are not masked, in their order: (B, N, D), (B, N) to (B, Nv, D); Nv is the same in every row."""
    visible = int((~is_masked[0]).sum().item())
    torch._check(visible >= 1)  # so that a compiler need not know the number
    torch._check(visible <= is_masked.shape[1])
    order = is_masked.to(torch.int8).argsort(dim=1, stable=True)
    return tokens.gather(1, order.narrow(1, 0, visible)[..., None].expand(-1, -1, tokens.shape[-1]))


class WordEncoder(TextEncoder):
    """``x = word + position``, then one block over the valid tokens."""

    def __init__(self, spec: TextEncoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], spec.width)
        self.positions = nn.Parameter(torch.randn(dims["L"], spec.width) * 0.02)
        self.block = SelfAttentionBlock(spec.width, spec.heads, 2 * spec.width)
        self.norm = nn.LayerNorm(spec.width)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Words and their positions."""
        result: Tensor = self.words(token_ids) + self.positions[: token_ids.shape[1]]
        return result

    def encode(self, text_embeddings: Tensor, text_is_valid: Tensor) -> Tensor:
        """Mix the valid tokens."""
        result: Tensor = self.norm(self.block(text_embeddings, text_is_valid))
        return result


class CrossAttention(Fusion):
    """One block in which text tokens attend to each other and to image tokens."""

    def __init__(self, spec: FusionSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = dims["Dt"]
        self.block = CrossAttentionBlock(width, spec.heads, 2 * width, memory_width=dims["Di"])
        self.norm = nn.LayerNorm(width)

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Let the text attend to the image."""
        return FusedFeatures(fused_text_tokens=self.norm(self.block(text_tokens, image_tokens, text_is_valid)))

    def attention_maps(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Tensor:
        """Text-to-image weights, mean over heads, (B, L, S)."""
        return self.block.cross_weights(text_tokens, image_tokens, text_is_valid).mean(dim=1)


class InfoNce(Alignment):
    """``CE(s) + CE(s^T)``, s the scaled cosines between the mean patch of each image and the mean word of each text."""

    def __init__(self, spec: AlignmentSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.image = nn.Linear(dims["Di"], spec.dim)
        self.text = nn.Linear(dims["Dt"], spec.dim)
        self.scale = LearnedScale(0.1)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """The loss ``global``."""
        image, text = self.embed_image(image_tokens), self.embed_text(text_tokens, text_is_valid)
        return Output(losses={"global": symmetric_info_nce(image, text, self.scale())})

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """The mean patch in the shared space."""
        return F.normalize(self.image(image_tokens.mean(dim=1)), dim=-1)

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """The mean valid token in the shared space."""
        return F.normalize(self.text(masked_mean(text_tokens, text_is_valid)), dim=-1)


class PatchDecoder(Decoder):
    """Visible tokens at their places, a mask token at the others, one block, a linear map to pixels."""

    def __init__(self, spec: ImageDecoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.grid = rows, columns = dims["GH"], dims["GW"]
        pixels = dims["C"] * (dims["H"] // rows) * (dims["W"] // columns)
        self.embed = nn.Linear(dims["Di"], spec.width)
        self.mask_token = nn.Parameter(torch.randn(spec.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(rows * columns, spec.width) * 0.02)
        self.block = SelfAttentionBlock(spec.width, 2, 2 * spec.width)
        self.to_pixels = nn.Linear(spec.width, pixels)

    def forward(self, image_tokens: Tensor, image_is_masked: Tensor, image: Tensor) -> Output:
        """Reconstruct every patch; the loss ``reconstruction`` is that of the masked ones."""
        tokens = insert_mask_tokens(self.embed(image_tokens), image_is_masked, self.mask_token) + self.positions
        prediction = self.to_pixels(self.block(tokens))
        loss = masked_patch_loss(prediction, patchify(image, *self.grid), image_is_masked)
        return Output(ports={"patch_prediction": prediction}, losses={"reconstruction": loss})


class WordDecoder(Decoder):
    """``logits = W x + b`` at the masked tokens."""

    def __init__(self, spec: ReportDecoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.to_vocabulary = nn.Linear(dims["Df"], dims["V"])

    def forward(self, text_tokens: Tensor, token_ids: Tensor, text_is_masked: Tensor) -> Output:
        """Predict the masked words; the loss ``words`` is their mean cross-entropy."""
        logits = self.to_vocabulary(text_tokens[text_is_masked])
        return Output(ports={"word_logits": logits}, losses={"words": word_loss(logits, token_ids[text_is_masked])})


class SquaredError(Decoder):
    """``mean (x - 1)^2`` of each port, summed over ports. It has no weights."""

    def __init__(self, spec: SquaredErrorSpec, dims: Dims) -> None:
        super().__init__(spec, dims)

    def forward(self, **given: Tensor) -> Output:
        """The loss ``distance``."""
        distances = [(value.float() - 1).square().mean() for value in given.values()]
        return Output(losses={"distance": torch.stack(distances).sum()})


class Source(Part):
    """``x_b = x + mean(image tokens of b)`` for every float port; zeros for whole numbers, and True."""

    def __init__(self, spec: SourceSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        gives = spec.contract().gives
        self.specs = {port: one for port, one in gives.items() if one.dtype != "shape"}
        shapes = {port: [1 if dim == "B" else int(dim) for dim in one.dims] for port, one in self.specs.items()}
        self.learned = nn.ParameterDict(
            {port: torch.randn(shape) for port, shape in shapes.items() if gives[port].dtype == "float"}
        )
        self.shapes = shapes

    def forward(self, image_tokens: Tensor) -> Tensor | Output:
        """Every port, of as many rows as there are images."""
        rows, mean = len(image_tokens), image_tokens.mean(dim=(1, 2))
        found: dict[str, Tensor] = {}
        for port, spec in self.specs.items():
            shape = self.shapes[port]
            has_rows = spec.dims[:1] == ("B",)
            if port in self.learned:
                moved = mean.reshape(-1, *[1] * (len(shape) - 1)) if has_rows else mean.mean()
                found[port] = self.learned[port] + moved
            else:
                dtype = torch.bool if spec.dtype == "bool" else torch.int64
                value = torch.full(shape, spec.dtype == "bool", dtype=dtype, device=image_tokens.device)
                found[port] = value.expand(rows, *shape[1:]) if has_rows else value
        return found.popitem()[1] if len(found) == 1 else Output(ports=found)
