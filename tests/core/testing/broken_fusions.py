"""The modules of ``broken_specs``, fusions: each a stub component of the kit with one thing changed."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core.nn.batch import FusedFeatures
from medvlp_core.nn.functional import masked_mean
from medvlp_core.nn.interfaces import Fusion
from medvlp_core.nn.layers import CrossAttentionBlock
from medvlp_core.spec.contract import Dims
from medvlp_core.testing.stub_components.modules import CrossAttention


class Changed(CrossAttention):
    """The stub component, with what :meth:`change` makes of its tokens; ``layer`` is there for those that want one."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Fuse, then change."""
        tokens = self.fuse(text_tokens, text_is_valid, image_tokens)
        return FusedFeatures(fused_text_tokens=self.change(tokens, text_is_valid))

    def fuse(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Tensor:
        """As the stub component does."""
        return self.norm(self.block(text_tokens, image_tokens, text_is_valid))

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """What is wrong."""
        return tokens


class TakesOtherNames(CrossAttention):
    """Positional: the contract says text_tokens, text_is_valid, image_tokens."""

    def forward(self, text: Tensor, is_valid: Tensor, image: Tensor) -> FusedFeatures:
        """The stub component's."""
        return super().forward(text, is_valid, image)


class TakesOneArgument(CrossAttention):
    """Is built with one argument."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec, {"Dt": 12, "Di": 24})


class TakesUndeclaredSizes(Changed):
    """Has a parameter for each image token, and their number is no size of its contract."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.positions = nn.Parameter(torch.zeros(dims["S"], dims["Di"]))


class SizesAsText(CrossAttention):
    """Declares one size, and forgot the comma."""


class GivesInAView(CrossAttention):
    """Declares what it gives for the masked view, and gives it in every view."""


class MarksByNothing(CrossAttention):
    """Declares what it gives for views in which an argument is there that it does not have."""


class GivesTooMuch(Changed):
    """Gives the image tokens too."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Two ports."""
        return FusedFeatures(
            fused_text_tokens=self.fuse(text_tokens, text_is_valid, image_tokens), fused_image_tokens=2 * image_tokens
        )


class Gates(NamedTuple):
    """Fused tokens, and a gate for each."""

    fused_text_tokens: Tensor | None
    word_gates: Tensor | None


class GivesTooLittle(Changed):
    """Gives nothing for the masked view, where there are fewer image tokens."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """One port or none."""
        tokens = self.fuse(text_tokens, text_is_valid, image_tokens)
        return FusedFeatures(fused_text_tokens=tokens if image_tokens.shape[1] == 8 else None)


class IsTooWide(Changed):
    """Gives one feature more than declared."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """One more."""
        return F.pad(tokens, (0, 1)) + 0.1 * tokens.mean()


class GivesDoubles(Changed):
    """Computes in float64 at the end."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Twice as long."""
        return tokens.double()


class ReportsOtherSizes(Changed):
    """Says another width than was planned."""

    def dims(self) -> dict[str, int]:
        """Wrong."""
        return {"Dt": 7}


class ShadowsDims(Changed):
    """Keeps what it was built with under the name of the method."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.dims = dims


class SumsAttentionToTwo(Changed):
    """Adds both heads instead of taking their mean."""

    def attention_maps(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Tensor:
        """Twice the weights."""
        return 2 * super().attention_maps(text_tokens, text_is_valid, image_tokens)


class SetsTheSeed(Changed):
    """Wants the same weights in every run."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        torch.manual_seed(0)
        super().__init__(spec, dims)


class DrawsWeightsElsewhere(Changed):
    """Draws a weight with the random module."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.gate = nn.Parameter(torch.tensor(1 + random.random()))

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Scale."""
        return self.gate * tokens


class DrawsNoiseElsewhere(Changed):
    """Draws noise for training with the random module."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Scale."""
        return tokens * (1 + 0.1 * random.random()) if self.training else tokens


class SetsTheSeedWhenCalled(Changed):
    """Wants the same dropout in every step."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Drop some."""
        if self.training:
            torch.manual_seed(1)
        return F.dropout(tokens, 0.1, training=self.training)


class DropsOutAlways(Changed):
    """Forgets to hand on whether it is trained."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Drop some."""
        return F.dropout(tokens, 0.1)


class StaysOnTheCpu(Changed):
    """Makes a tensor without saying where."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Weigh the channels."""
        return tokens * torch.linspace(0.9, 1.1, tokens.shape[2])


class WritesIntoFeatures(Changed):
    """Adds in place."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Shift the input itself."""
        text_tokens += 0.1
        return super().forward(text_tokens, text_is_valid, image_tokens)


class AveragesPadding(Changed):
    """Adds the mean of all positions."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Padding too."""
        tokens = self.fuse(text_tokens, text_is_valid, image_tokens)
        return FusedFeatures(fused_text_tokens=tokens + text_tokens.mean(dim=1, keepdim=True))


class AveragesTheBatch(Changed):
    """Adds the mean [CLS] of the batch."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Neighbours count."""
        return tokens + tokens[:, :1].mean(dim=0, keepdim=True)


class KeepsAPlainTensor(Changed):
    """Draws an offset that is neither parameter nor buffer."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.offset = torch.randn(dims["Dt"])

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Shift."""
        return tokens + self.offset


class KeepsAFleetingBuffer(Changed):
    """Draws an offset that no checkpoint keeps."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.register_buffer("offset", torch.randn(dims["Dt"]), persistent=False)

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Shift."""
        return tokens + self.offset


class BranchesOnData(Changed):
    """Looks at a number in Python."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Scale where they are large, which they never are."""
        return tokens * 0.5 if tokens.abs().max() > 1e6 else tokens


class WithLayer(Changed):
    """Has one more layer."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.layer = nn.Linear(dims["Dt"], dims["Dt"])


class DetachesALayer(WithLayer):
    """Cuts a layer off the gradient."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Add without learning."""
        return tokens + self.layer(tokens).detach()


class MultipliesByZero(WithLayer):
    """Leaves a layer without influence."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """Add nothing."""
        return tokens + 0.0 * self.layer(tokens)


class DetachesTheImage(Changed):
    """Keeps the image encoder from learning."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Cut the image off."""
        return super().forward(text_tokens, text_is_valid, image_tokens.detach())


class ReversesGradients(Changed):
    """``y = x``, and the gradient runs the other way."""

    def change(self, tokens: Tensor, is_valid: Tensor) -> Tensor:
        """The value stays."""
        return 2 * tokens.detach() - tokens


class DeclaresALoss(Changed):
    """Declares a loss, and a fusion has none."""


class WantsTheOptional(Changed):
    """Declares text_is_valid as optional, and wants it."""


class Mixed(NamedTuple):
    """A port of its own."""

    mixed_tokens: Tensor


class GivesAnotherPort(Changed):
    """Gives a port of its own in place of those of its role."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Mixed:
        """The stub component's, under another name."""
        return Mixed(mixed_tokens=self.fuse(text_tokens, text_is_valid, image_tokens))


class GoodGateThatStartsAtZero(Changed):
    """``y = text + tanh(g) x`` with g = 0 at first, so that the image has no influence before the first step."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Open the gate little by little."""
        tokens = self.fuse(text_tokens, text_is_valid, image_tokens)
        return FusedFeatures(fused_text_tokens=text_tokens + self.gate.tanh() * tokens)


class GoodNamesOfItsOwn(CrossAttention):
    """Calls its arguments as it likes, and takes whatever the contract needs."""

    def __init__(self, config: Any, sizes: Dims, *, is_loud: bool = False) -> None:
        super().__init__(config, sizes)
        self.is_loud = is_loud

    def forward(self, **features: Tensor) -> FusedFeatures:
        """The stub component's."""
        return super().forward(**features)


class GoodFusionOfImageTokens(Fusion):
    """Image tokens attend to the text; the text stays as it is."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = dims["Di"]
        self.text = nn.Linear(dims["Dt"], width)
        self.block = CrossAttentionBlock(width, 1, width)

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Let the image attend to the words."""
        text = self.text(masked_mean(text_tokens, text_is_valid))[:, None]
        return FusedFeatures(fused_image_tokens=self.block(image_tokens + text, text.expand(-1, 2, -1) + image_tokens[:, :1]))


class GoodPortOfItsOwn(WithLayer):
    """Gives a gate for each word besides, for a decoder that wants it."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Gates:
        """Two ports."""
        tokens = self.fuse(text_tokens, text_is_valid, image_tokens)
        return Gates(fused_text_tokens=tokens, word_gates=self.layer(tokens).mean(dim=2, keepdim=True))
