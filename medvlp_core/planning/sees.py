"""Which ports see a text only up to each position (``sees="past"``), worked out along the calls, and who demands it. Light.

A contract's ``sees="past"`` is a promise about the call alone: position l of what it gives depends on the positions up to l of what
it takes. A port then sees the past of a text if its call promises it and everything that the call takes sees the past too, or has
nothing of that text. The ids of a text, and what the tokenizer tells of each, see the past; what a masking draws, and what was made
of the whole text (a pooled vector, patches that have seen it), sees all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.wiring import Call, PlannedComponent, PortKey, Wiring
from medvlp_core.spec.contract import Axis, Sees, Symbol
from medvlp_core.spec.fields import text_ports
from medvlp_core.spec.roles import Role

#: Logits of the next word: generation rests on it that they see the past, so that whoever gives them has to promise it.
NEXT_WORD = "next_word_logits"


def texts_of(wiring: Wiring) -> dict[str, tuple[str, ...]]:
    """The texts of a batch: the field, and the names of its ids, validity, words and spans, in this order."""
    names = [name for name, field in wiring.fields.items() if field.kind == "text"]
    found = {name: tuple(text_ports(name, wiring.fields[name].dims)) for name in names}
    return {name: ports for name, ports in found.items() if PortKey(ports[0]) in wiring.batch}


def text_along(wiring: Wiring, key: PortKey) -> str | None:
    """The field of the text that a port stands along; None if it stands along none that is known."""
    axes = {}
    for name, ports in texts_of(wiring).items():
        provider = wiring.batch[PortKey(ports[0])]
        symbol = wiring.symbol(provider.path, provider.call, provider.view, provider.spec.dims[-1])
        if isinstance(symbol, Symbol) and isinstance(axis := wiring.table.size(symbol), Axis):
            axes[axis] = name
    provider = wiring.provider(key)
    for dim in provider.spec.dims:
        symbol = wiring.symbol(provider.path, provider.call, provider.view, dim)
        size = wiring.table.size(symbol) if isinstance(symbol, Symbol) else None
        if isinstance(size, Axis) and size in axes:
            return axes[size]
    return None


@attrs.define
class Sight:
    """How much of each text a port depends on, worked out once for each port."""

    wiring: Wiring
    _known: dict[PortKey, Mapping[str, Sees]] = attrs.field(factory=dict, init=False)

    def of(self, key: PortKey) -> Mapping[str, Sees]:
        """The texts that a port depends on, each with how much of it; nothing for what has seen no text."""
        if key not in self._known:
            call = self.wiring.call_of(key)
            self._known[key] = self._of_batch(key) if call is None else self._of_call(call, key)
        return self._known[key]

    def _of_batch(self, key: PortKey) -> Mapping[str, Sees]:
        for name, ports in texts_of(self.wiring).items():
            if key.port in ports:
                return {name: "past"}
        provider = self.wiring.batch.get(key)
        if provider is None:
            return {}
        owner = self.wiring.components.get(provider.path)
        if owner is not None and owner.role is Role.TOKENIZER:
            return {"text": provider.spec.sees or "all"}
        field = self.wiring.fields.get(self.wiring.field_ports.get(key.port, ""))
        on = self.wiring.fields.get(field.on or "") if field is not None else None
        return {str(field.on): "all"} if field is not None and on is not None and on.kind == "text" else {}

    def _of_call(self, call: Call, key: PortKey) -> Mapping[str, Sees]:
        found: dict[str, Sees] = {}
        for _, taken in call.takes:
            for text, sees in self.of(taken).items():
                found[text] = "all" if "all" in (sees, found.get(text)) else "past"
        along = text_along(self.wiring, key) if found and self.wiring.provider(key).spec.sees == "past" else None
        return {text: sees if text == along else "all" for text, sees in found.items()}

    def blame(self, key: PortKey, text: str) -> str:
        """The label of the component from which on all of a text is seen."""
        call = self.wiring.call_of(key)
        while call is not None:
            before = [taken for _, taken in call.takes if self.of(taken).get(text) == "all"]
            if not before or self.wiring.call_of(before[0]) is None:
                break
            key = before[0]
            call = self.wiring.call_of(key)
        path = self.wiring.provider(key).path
        return self.wiring.components[path].label if path in self.wiring.components else path


def check_sight(wiring: Wiring, calls: Iterable[Call], diagnostics: Diagnostics) -> None:
    """Refuse calls that would see more of a text than they may (MV204).

    A need with ``sees="past"`` may see the past only. A call with losses that promises ``sees="past"`` demands it of all that it
    takes, and so does whoever gives ``next_word_logits``: it would read the words that it has to find. Any other call passes on
    what it gets.
    """
    sight = Sight(wiring)
    said: set[str] = set()
    for call in calls:
        component = wiring.components[call.path]
        contract = component.calls[call.name]
        given = [key for key in call.gives if wiring.provider(key).spec.sees == "past"]
        if any(key.name == NEXT_WORD and key not in given for key in call.gives):
            text = f"{component.label}: {NEXT_WORD} must be promised to see the past only"
            hint = f'declare it: gives={{"{NEXT_WORD}": TensorSpec.parse("B L V", sees="past")}}'
            diagnostics.add("MV204", text, at=component.position(), hint=hint)
        demanding = [key for key in given if contract.losses or key.name == NEXT_WORD]
        along = {text_along(wiring, key) for key in demanding}
        for argument, key in call.takes:
            texts = set(along)
            if contract.needs[argument].sees == "past":
                texts.add(text_along(wiring, key))
            _complain(wiring, sight, component, key, texts, demanding, said, diagnostics)


def _complain(
    wiring: Wiring,
    sight: Sight,
    component: PlannedComponent,
    key: PortKey,
    texts: set[str | None],
    demanding: list[PortKey],
    said: set[str],
    diagnostics: Diagnostics,
) -> None:
    """Complain of a port that sees all of one of these texts; None stands for any."""
    for name, sees in sight.of(key).items():
        if sees == "all" and texts & {name, None}:
            why = f", for it gives {demanding[0].name}" if demanding else ""
            text = f"{component.label} may see a text only up to each position{why}, and {wiring.short(key)} has seen all of it"
            origin = f"all of it is seen from {sight.blame(key, name)} on"
            if text not in said:
                said.add(text)
                hint = 'something that gives it with sees="past" must stand there (docs/ports.md)'
                diagnostics.add("MV204", text, at=component.position(), details=(origin,), hint=hint)
