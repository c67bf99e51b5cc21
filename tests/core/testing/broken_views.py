"""The modules of ``broken_specs``, encoders and maskings: each a stub component of the kit with one thing changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medvlp_core.nn.batch import ImageFeatures, MaskPlan
from medvlp_core.nn.functional import patchify, random_patch_mask, visible_count
from medvlp_core.spec.contract import Dims
from medvlp_core.testing.stub_components.modules import PatchEncoder, RandomMasking, WordEncoder


class OverridesForward(WordEncoder):
    """Overrides what is final."""

    def forward(self, token_ids: Tensor, text_is_valid: Tensor) -> Tensor:
        """The same."""
        return self.encode(self.embed(token_ids), text_is_valid)


class GoodFrozenEncoder(WordEncoder):
    """Is not trained."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.requires_grad_(False)


class TurnsTheRaster(PatchEncoder):
    """Gives the last patch first."""

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Upside down."""
        features = super().forward(image, image_is_masked)
        return features._replace(image_tokens=features.image_tokens.flip(dims=[1]))


class ShufflesVisibleTokens(PatchEncoder):
    """Gives visible patches in the order in which they were drawn, as MAE's code does."""

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Only the masked view is wrong."""
        features = super().forward(image, image_is_masked)
        turned = features.image_tokens.roll(1, dims=1)
        return features if image_is_masked is None else features._replace(image_tokens=turned)


class MixesBeforeItDrops(PatchEncoder):
    """Adds the mean of all patches before it drops masked ones."""

    def forward(self, image: Tensor, image_is_masked: Tensor | None = None) -> ImageFeatures:
        """Masked pixels leak into the mean."""
        features = super().forward(image, image_is_masked)
        mean = self.embed(patchify(image, *self.grid)).mean(dim=1, keepdim=True)
        return features._replace(image_tokens=features.image_tokens + 0.1 * mean)


class GoodEncoderWithoutMaskedView(PatchEncoder):
    """Sees whole images only."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.mask_token = None

    def forward(self, image: Tensor) -> ImageFeatures:
        """The clean view."""
        return super().forward(image)


class GoodEncoderThatNeedsAMask(PatchEncoder):
    """Encodes no image as a whole."""

    def forward(self, image: Tensor, image_is_masked: Tensor) -> ImageFeatures:
        """The masked view."""
        return super().forward(image, image_is_masked)


class ChangedMasking(RandomMasking):
    """The stub component, with what :meth:`change` makes of its plan."""

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> MaskPlan:
        """Draw, then change."""
        return self.change(super().forward(token_ids, text_is_valid, word_ids), token_ids)

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """What is wrong."""
        raise NotImplementedError


class GivesSmallInts(ChangedMasking):
    """Saves memory."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """Half as long."""
        return plan._replace(token_ids=plan.token_ids.int())


class ComputesIdsAsFloats(ChangedMasking):
    """Multiplies ids as if they were features, and turns them back only where they kept their precision."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """Under autocast a product is shorter."""
        ids = (plan.token_ids[..., None].float() @ torch.ones(1, 1, device=token_ids.device))[..., 0]
        return plan._replace(token_ids=ids.long() if ids.dtype == torch.float32 else ids)


class MasksCls(ChangedMasking):
    """Masks the first token too."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """[CLS] is gone."""
        masked = plan.text_is_masked.clone()
        masked[:, 0] = True
        return plan._replace(text_is_masked=masked, token_ids=token_ids.masked_fill(masked, self.mask_id))


class ChangesOtherIds(ChangedMasking):
    """Writes [MASK] over the token after a masked one as well."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """One too many."""
        return plan._replace(token_ids=plan.token_ids.masked_fill(plan.text_is_masked.roll(1, dims=1), self.mask_id))


class KeepsMaskedIds(ChangedMasking):
    """Says what is masked and masks nothing."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """The clean ids."""
        return plan._replace(token_ids=token_ids)


class MasksAnyNumber(ChangedMasking):
    """Throws a coin for each patch."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """Other numbers in each row."""
        return plan._replace(
            image_is_masked=torch.rand(plan.image_is_masked.shape, device=token_ids.device) < self.spec.image_ratio
        )


class MasksTheSameEachTime(ChangedMasking):
    """Has a random state of its own, always the same."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """The same patches."""
        order = torch.rand(plan.image_is_masked.shape, generator=torch.Generator().manual_seed(0))
        order = order.argsort(dim=1).to(token_ids.device)
        return plan._replace(image_is_masked=order < plan.image_is_masked[0].sum())


class MasksTheSameInABatch(ChangedMasking):
    """Draws once for all images."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """The first image's."""
        return plan._replace(image_is_masked=plan.image_is_masked[:1].expand(len(token_ids), -1))


class MasksNothing(ChangedMasking):
    """Forgets to mask."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """All visible."""
        return MaskPlan(torch.zeros_like(plan.image_is_masked), torch.zeros_like(plan.text_is_masked), token_ids)


class TakesTheRatioForVisible(ChangedMasking):
    """Takes the share of masked patches for that of visible ones."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """The other share."""
        visible = visible_count(self.patches, 1 - self.spec.image_ratio)
        return plan._replace(image_is_masked=random_patch_mask(len(token_ids), self.patches, visible, token_ids.device))


class ReadsPadding(ChangedMasking):
    """Masks other patches for another padding."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """Turn the images by what stands last in the texts."""
        return plan._replace(image_is_masked=plan.image_is_masked.roll(int(token_ids[:, -1].sum()), dims=1))


class GoodMaskingOfWordsAlone(ChangedMasking):
    """Leaves images whole, as its spec says."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """All patches visible."""
        return plan._replace(image_is_masked=torch.zeros_like(plan.image_is_masked))


class GoodMaskingWithKeptIds(ChangedMasking):
    """As BERT: of the masked tokens some keep their id."""

    def change(self, plan: MaskPlan, token_ids: Tensor) -> MaskPlan:
        """A fifth keeps it."""
        kept = plan.text_is_masked & (torch.rand(token_ids.shape, device=token_ids.device) < 0.2)
        return plan._replace(token_ids=torch.where(kept, token_ids, plan.token_ids))
