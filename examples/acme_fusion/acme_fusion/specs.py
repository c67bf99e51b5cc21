"""The spec of the fusion: its parameters, and what it needs and gives. Light: no torch here."""

from __future__ import annotations

import attrs
from medvlp_core import ComponentSpec, Contract, Divides, Role, component, param


@component(
    "acme_fusion.gated_attention",
    role=Role.FUSION,
    build="acme_fusion.fusion:GatedAttention",
)
@attrs.frozen(kw_only=True)
class GatedAttentionSpec(ComponentSpec):
    """Words attend to the image, and a gate for each word decides how much of what they found gets in."""

    heads: int = param(4, help="attention heads K; must divide the text width", at_least=1)
    gate_bias: float = param(-1.0, help="start value of the gate's bias; negative = nearly shut at first")
    dropout: float = param(0.0, help="dropout of the attention weights", at_least=0, below=1)

    def contract(self) -> Contract:
        """Text tokens of width Dt and S image tokens of any width Di in, text tokens of the same width out."""
        return Contract(
            needs={"text_tokens": "B L Dt", "text_is_valid": "B L:bool", "image_tokens": "B S Di"},
            gives={"fused_text_tokens": "B L Dt"},
            sizes=("Dt", "Di"),  # what weights depend on, and the builder gets
            require=(Divides("Dt", by=self.heads, field="heads"),),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two small ones; the conformance kit runs on them."""
        return (cls(heads=1), cls(heads=2, gate_bias=0.0, dropout=0.1))


SPECS: tuple[type[ComponentSpec], ...] = (GatedAttentionSpec,)
