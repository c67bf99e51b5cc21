"""Spec of the embedded sample set. Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param
from medvlp_open_cxr.manifest import SOURCES, describe


@component("open_cxr.pairs", role=Role.DATA, build="medvlp_open_cxr.source:OpenCxrPairs")
@attrs.frozen(kw_only=True)
class OpenCxrPairsSpec(ComponentSpec):
    """Real chest radiographs with texts, openly licensed, shipped with the package; patient-disjoint train, val and test."""

    sources: tuple[str, ...] = param(
        ("nih", "covid", "vqarad"), help="collections to take; hannover has labels but no texts", one_of=SOURCES
    )
    sections: str = param(
        "all",
        help="part of the nih texts to take: findings, impression, or all = both with their headings",
        one_of=("all", "findings", "impression"),
    )

    def contract(self) -> Contract:
        """Nothing: the input pipeline turns records into tensors."""
        return Contract()

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """At least one source, none twice."""
        if not self.sources:
            yield "sources", "name at least one source", f"known sources: {', '.join(SOURCES)}"
        if len(set(self.sources)) != len(self.sources):
            yield "sources", f"a source stands twice in {list(self.sources)}", "name each source once"

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """All pairs, and the impressions of one source."""
        return (cls(), cls(sources=("nih",), sections="impression"))

    @classmethod
    def about(cls) -> str:
        """Counts, who wrote the texts, licences and warnings; ``medvlp show`` prints it."""
        return describe()


SPECS: tuple[type[ComponentSpec], ...] = (OpenCxrPairsSpec,)
