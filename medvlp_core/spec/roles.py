"""What a role is: one row for each, from which slots, hints, builders, checks and templates derive.

Adding a role touches this table, one interface and one template folder (CONTRIBUTING.md says how).
"""

from __future__ import annotations

import enum

import attrs


class Role(str, enum.Enum):
    """What a component is for. A closed list: a role is added only when a real system needs it."""

    DATA = "data"
    TOKENIZER = "tokenizer"
    MASKING = "masking"
    IMAGE_ENCODER = "image_encoder"
    TEXT_ENCODER = "text_encoder"
    FUSION = "fusion"
    PART = "part"
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
        also: further slots that take it.
        interface: import string of the abstract class that its components implement.
        calls: the methods that a component of the role may be called by; the first one every component has.
        output: what ``forward`` returns, a class of medvlp_core.nn.batch; None where it returns a tensor.
        gives: ports that a component of the role must give.
        gives_one_of: ports of which it must give at least one.
        leads_to: further ports that are unknown while the component of this role is broken.
        is_encoder: it turns what the batch brings into features, and is what a trained model is used for.
        emits_losses: its loss terms are what training minimises.
        template: the component that ``medvlp new --role`` writes.
    """

    slot: str
    also: tuple[str, ...] = ()
    interface: str
    calls: tuple[str, ...] = ("forward",)
    output: str | None = None
    gives: frozenset[str] = frozenset()
    gives_one_of: frozenset[str] = frozenset()
    leads_to: frozenset[str] = frozenset()
    is_encoder: bool = False
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
    def ports(self) -> frozenset[str]:
        """The ports that the role gives by convention."""
        return self.gives | self.gives_one_of | self.leads_to


#: Every role, in the order in which components are read.
ROLES: dict[Role, RoleInfo] = {
    Role.DATA: RoleInfo(slot="data", interface="medvlp_core.data.records:DataSource", template="folder_pairs"),
    Role.TOKENIZER: RoleInfo(
        slot="tokenizer",
        interface="medvlp_core.data.tokenizer:Tokenizer",
        gives=frozenset({"token_ids", "text_is_valid", "word_ids", "vocabulary"}),
        leads_to=frozenset({"end_of_text"}),
        template="word_table",
    ),
    Role.MASKING: RoleInfo(
        slot="model.masking",
        also=("model.maskings.*",),
        interface="medvlp_core.nn.interfaces:Masking",
        output="MaskPlan",
        # Of patches, of words, or of anything else: what it masks, a view needs.
        leads_to=frozenset({"image_is_masked", "text_is_masked", "token_ids"}),
        template="block_and_words",
    ),
    Role.IMAGE_ENCODER: RoleInfo(
        slot="model.image_encoder",
        also=("model.parts.*",),
        interface="medvlp_core.nn.interfaces:ImageEncoder",
        output="ImageFeatures",
        gives=frozenset({"image_grid", "image_tokens", "image_prefix"}),
        is_encoder=True,
        template="conv_patches",
    ),
    Role.TEXT_ENCODER: RoleInfo(
        slot="model.text_encoder",
        also=("model.parts.*",),
        interface="medvlp_core.nn.interfaces:TextEncoder",
        calls=("embed", "encode"),
        gives=frozenset({"text_embeddings", "text_tokens"}),
        # An early fusion leads back through the text encoder.
        leads_to=frozenset({"fused_text_tokens"}),
        is_encoder=True,
        template="plain_transformer",
    ),
    Role.FUSION: RoleInfo(
        slot="model.fusion",
        also=("model.parts.*",),
        interface="medvlp_core.nn.interfaces:Fusion",
        output="FusedFeatures",
        gives_one_of=frozenset({"fused_text_tokens", "fused_text_embeddings", "fused_image_tokens"}),
        template="gated_sum",
    ),
    Role.PART: RoleInfo(slot="model.parts.*", interface="medvlp_core.nn.interfaces:Part", template="attention_pool"),
    Role.ALIGNMENT: RoleInfo(
        slot="model.alignments.*",
        interface="medvlp_core.nn.interfaces:Alignment",
        calls=("forward", "embed_image", "embed_text"),
        output="Output",
        gives=frozenset({"image_embedding", "text_embedding"}),
        emits_losses=True,
        template="triplet_margin",
    ),
    Role.DECODER: RoleInfo(
        slot="model.decoders.*",
        interface="medvlp_core.nn.interfaces:Decoder",
        calls=("forward", "generate"),
        output="Output",
        leads_to=frozenset({"patch_prediction", "word_logits", "next_word_logits"}),
        emits_losses=True,
        template="bag_of_words",
    ),
    Role.EVALUATOR: RoleInfo(
        slot="evaluators.*",
        interface="medvlp_core.evaluation.protocol:Evaluator",
        template="pair_choice",
    ),
}

#: Roles that emit losses.
HEADS = tuple(role for role, info in ROLES.items() if info.emits_losses)
#: Every slot, or free slots' common part (``model.alignments``), in the order in which they are read, and the roles that fit.
SLOTS: dict[str, tuple[Role, ...]] = {}
for _info in ROLES.values():
    for _slot in (_info.slot, *(slot for slot in _info.also if slot not in {one.slot for one in ROLES.values()})):
        SLOTS[_slot] = tuple(role for role, one in ROLES.items() if _slot in (one.slot, *one.also))
#: What the model and its checkpoints call their parts: ``image_encoder``, ``alignments``.
MODEL_BLOCKS = tuple(slot.removeprefix("model.").removesuffix(".*") for slot in SLOTS if slot.startswith("model."))
#: Roles whose components turn images or texts into features.
ENCODERS = tuple(role for role, info in ROLES.items() if info.is_encoder)
#: The roles of the model in the order in which its parts are built: what the encoders report of their true sizes serves the rest.
BUILD_ORDER = (*ENCODERS, *(role for role, info in ROLES.items() if info.is_module and not info.is_encoder))
