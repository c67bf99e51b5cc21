"""Specs of Code-and-Pixels: masked cells of a table, its encoder, and what fills the cells in. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("gallery.cell_masking", role=Role.MASKING, build="medvlp_gallery.code_and_pixels:CellMasking")
@attrs.frozen(kw_only=True)
class CellMaskingSpec(ComponentSpec):
    """Masks cells of a table, each with one probability; neither patches nor words."""

    ratio: float = param(0.3, help="probability of each known cell to be masked", at_least=0, at_most=1)

    def contract(self) -> Contract:
        """A table, of which cells may be unknown."""
        return Contract(needs={"table": "B F", "table_is_known": "B F:bool?"}, gives={"cell_is_masked": "B F:bool"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Few and many cells."""
        return (cls(), cls(ratio=0.7))


@component("gallery.table_encoder", role=Role.PART, build="medvlp_gallery.code_and_pixels:TableEncoder")
@attrs.frozen(kw_only=True)
class TableEncoderSpec(ComponentSpec):
    """Rows of a table as tokens of cells and one vector: a 1-D residual network with attention over channels and cells."""

    width: int = param(64, help="width of a cell's token; 4 must divide it", at_least=4)
    blocks: int = param(2, help="residual blocks", at_least=1)

    def contract(self) -> Contract:
        """Unknown and masked cells are seen as such."""
        return Contract(
            needs={"table": "B F", "table_is_known": "B F:bool?", "cell_is_masked": "B F:bool?"},
            gives={"cell_tokens": f"B F {self.width}", "table_vector": f"B {self.width}"},
            sizes=("F",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two blocks."""
        return (cls(width=8, blocks=1), cls(width=12))


@component("gallery.cell_decoder", role=Role.DECODER, build="medvlp_gallery.code_and_pixels:CellDecoder")
@attrs.frozen(kw_only=True)
class CellDecoderSpec(ComponentSpec):
    """Says what stood in the masked cells of a table."""

    def contract(self) -> Contract:
        """Tokens of the view in which cells are masked, and the table itself."""
        return Contract(
            needs={
                "cell_tokens": "B F D @masked",
                "cell_is_masked": "B F:bool @masked",
                "table": "B F",
                "table_is_known": "B F:bool?",
            },
            gives={"cell_prediction": "B F"},
            sizes=("F", "D"),
            losses=("cells",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """There is nothing to choose."""
        return (cls(), cls())


SPECS: tuple[type[ComponentSpec], ...] = (CellMaskingSpec, TableEncoderSpec, CellDecoderSpec)
