"""What a role is: one row for each, from which slots, hints, builders, checks and templates derive.

Adding a role touches this table, one interface and one template folder (CONTRIBUTING.md says how).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal

import attrs

#: The calls of a forward pass: what the batch brings, what specs already say, and what the modules compute one after the other.
Stage = Literal["batch", "static", "mask", "encode_image", "embed_text", "encode_text", "fuse", "encode_fused", "head"]


class Role(str, enum.Enum):
    """What a component is for. A closed list: a role is added only when a real system needs it."""

    DATA = "data"
    TOKENIZER = "tokenizer"
    MASKING = "masking"
    IMAGE_ENCODER = "image_encoder"
    TEXT_ENCODER = "text_encoder"
    FUSION = "fusion"
    ALIGNMENT = "alignment"
    DECODER = "decoder"
    EVALUATOR = "evaluator"

    def __str__(self) -> str:
        return self.value

    @property
    def info(self) -> RoleInfo:
        """Everything that is fixed about the role."""
        return ROLES[self]


@attrs.frozen(kw_only=True)
class RoleInfo:
    """What is fixed about one role.

    Args:
        slot: where its component stands in a recipe; ``*`` is a free slot name (0..n components).
        interface: import string of the abstract class that its components implement.
        stage: the call of the forward pass that computes what it gives; evaluators stand behind all of them, with the heads.
        earlier: ports that an earlier call of the same component computes, with that call.
        output: the NamedTuple of medvlp_core.nn.batch that ``forward`` returns; None where it returns something else.
        gives: ports that a component of the role must give.
        gives_one_of: ports of which it must give at least one.
        leads_to: further ports that are unknown while the component of this role is broken.
        runs_in_views: it runs once for each view (clean, masked) that somebody needs.
        emits_losses: its loss terms are what training minimises.
        template: the component that ``medvlp new --role`` writes.
    """

    slot: str
    interface: str
    stage: Stage
    earlier: Mapping[str, Stage] = attrs.field(factory=dict, hash=False)
    output: str | None = None
    gives: frozenset[str] = frozenset()
    gives_one_of: frozenset[str] = frozenset()
    leads_to: frozenset[str] = frozenset()
    runs_in_views: bool = False
    emits_losses: bool = False
    template: str

    @property
    def base(self) -> str:
        """The slot without its free part: ``model.alignments`` of ``model.alignments.*``."""
        return self.slot.removesuffix(".*")

    @property
    def is_many(self) -> bool:
        """Whether a recipe may have several components of the role."""
        return self.slot.endswith(".*")

    @property
    def is_module(self) -> bool:
        """Whether its components are parts of the model: torch modules with a forward pass."""
        return self.slot.startswith("model.")

    @property
    def is_encoder(self) -> bool:
        """Whether it turns what the batch brings into features."""
        return self.stage.startswith("encode")

    def stage_of(self, port: str) -> Stage:
        """The call that computes a port."""
        return self.earlier.get(port, self.stage)

    @property
    def ports(self) -> frozenset[str]:
        """The ports that the role gives by convention."""
        return self.gives | self.gives_one_of | self.leads_to


#: Every role, in the order in which components are read.
ROLES: dict[Role, RoleInfo] = {
    Role.DATA: RoleInfo(slot="data", interface="medvlp_core.data.records:DataSource", stage="batch", template="folder_pairs"),
    Role.TOKENIZER: RoleInfo(
        slot="tokenizer",
        interface="medvlp_core.data.tokenizer:Tokenizer",
        stage="batch",
        gives=frozenset({"token_ids", "text_is_valid", "word_ids", "vocabulary"}),
        template="word_table",
    ),
    Role.MASKING: RoleInfo(
        slot="model.masking",
        interface="medvlp_core.nn.interfaces:Masking",
        stage="mask",
        output="MaskPlan",
        gives=frozenset({"image_is_masked", "text_is_masked", "token_ids"}),
        template="block_and_words",
    ),
    Role.IMAGE_ENCODER: RoleInfo(
        slot="model.image_encoder",
        interface="medvlp_core.nn.interfaces:ImageEncoder",
        stage="encode_image",
        output="ImageFeatures",
        gives=frozenset({"image_grid", "image_tokens", "image_prefix"}),
        runs_in_views=True,
        template="conv_patches",
    ),
    Role.TEXT_ENCODER: RoleInfo(
        slot="model.text_encoder",
        interface="medvlp_core.nn.interfaces:TextEncoder",
        stage="encode_text",
        earlier={"text_embeddings": "embed_text"},
        gives=frozenset({"text_embeddings", "text_tokens"}),
        # An early fusion leads back through the text encoder.
        leads_to=frozenset({"fused_text_tokens"}),
        runs_in_views=True,
        template="plain_transformer",
    ),
    Role.FUSION: RoleInfo(
        slot="model.fusion",
        interface="medvlp_core.nn.interfaces:Fusion",
        stage="fuse",
        output="FusedFeatures",
        gives_one_of=frozenset({"fused_text_tokens", "fused_text_embeddings", "fused_image_tokens"}),
        runs_in_views=True,
        template="gated_sum",
    ),
    Role.ALIGNMENT: RoleInfo(
        slot="model.alignments.*",
        interface="medvlp_core.nn.interfaces:Alignment",
        stage="head",
        gives=frozenset({"image_embedding", "text_embedding"}),
        emits_losses=True,
        template="triplet_margin",
    ),
    Role.DECODER: RoleInfo(
        slot="model.decoders.*",
        interface="medvlp_core.nn.interfaces:Decoder",
        stage="head",
        leads_to=frozenset({"patch_prediction", "word_logits"}),
        emits_losses=True,
        template="bag_of_words",
    ),
    Role.EVALUATOR: RoleInfo(
        slot="evaluators.*",
        interface="medvlp_core.evaluation.protocol:Evaluator",
        stage="head",
        template="pair_choice",
    ),
}

#: Roles that emit losses.
HEADS = tuple(role for role, info in ROLES.items() if info.emits_losses)
#: Roles whose components are modules of the model, and what the model and its checkpoints call them (``alignments``).
MODULE_NAMES = {role: info.base.removeprefix("model.") for role, info in ROLES.items() if info.is_module}
#: Roles whose components turn images or texts into features.
ENCODERS = tuple(role for role, info in ROLES.items() if info.is_encoder)
#: The roles of the model in the order in which its parts are built: what the encoders report of their true sizes serves the rest.
BUILD_ORDER = (*ENCODERS, *(role for role in MODULE_NAMES if role not in ENCODERS))
