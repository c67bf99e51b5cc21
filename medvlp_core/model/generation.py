"""Writing texts: a decoder's own ``generate``, or one token after another over the port ``next_word_logits``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from medvlp_core.errors import DataError, Problem, SpecError
from medvlp_core.model.running import RunsCalls, computed
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.sees import NEXT_WORD, text_along, texts_of
from medvlp_core.planning.wiring import Call, PortKey
from medvlp_core.spec.contract import Axis, Symbol

#: The call of a decoder that writes texts in its own way.
OWN = "generate"


class GeneratedTexts(NamedTuple):
    """Texts as ids.

    Shape:
        token_ids (B, G) int64, prompts among them; is_valid (B, G) bool, True up to the end of a text, which is among them.
    """

    token_ids: Tensor
    is_valid: Tensor


@attrs.frozen(kw_only=True)
class NextToken:
    """How the next token is chosen: the likeliest one, or a draw.

    ``p = softmax(logits / temperature)``, of the ``top_k`` largest logits, and of these of the likeliest tokens whose
    probabilities reach ``top_p`` together.

    Raises:
        ValueError: a number is out of its range.
    """

    do_sample: bool = False
    temperature: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    top_k: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    top_p: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.and_(attrs.validators.gt(0), attrs.validators.le(1)))
    )

    def __call__(self, logits: Tensor) -> Tensor:
        """(B, V) to (B,)."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        return torch.multinomial(self.probabilities(logits), 1)[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from: (B, V) to (B, V)."""
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        found = logits.softmax(dim=-1)
        if self.top_p is not None:
            ranked, order = found.sort(dim=-1, descending=True)
            is_enough = ranked.cumsum(dim=-1) - ranked >= self.top_p
            found = found.masked_fill(is_enough.gather(1, order.argsort(dim=-1)), 0.0)
        return found / found.sum(dim=-1, keepdim=True)


def generate(
    model: RunsCalls,
    batch: Batch,
    *,
    decoder: str | None = None,
    uses_own: bool = True,
    max_length: int | None = None,
    end_id: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> GeneratedTexts:
    """See :meth:`medvlp_core.model.composed.ComposedModel.generate`."""
    own = _own_call(model, decoder) if uses_own else None
    key = own.gives[0] if own is not None else model.key_of(NEXT_WORD if decoder is None else f"{decoder}.{NEXT_WORD}")
    text = (None if own is not None else text_along(model.plan.wiring, key)) or "text"
    names = texts_of(model.plan.wiring).get(text, ())
    if not names:
        raise SpecError(Problem(code="MV201", text="this model has no text to write", hint="the recipe has no tokenizer"))
    start = _prompts(batch, names)
    if own is not None and start[names[0]].shape[1] > 1:
        if model.plan.wiring.key(NEXT_WORD if decoder is None else f"{decoder}.{NEXT_WORD}") is not None:
            return generate(
                model, batch, decoder=decoder, uses_own=False, max_length=max_length, end_id=end_id, seed=seed, **options
            )
        shape = f"{own} starts every text itself, found a prompt of {start[names[0]].shape[1]} tokens"
        raise DataError(Problem(code="MV505", text=shape, hint="give the first token alone: [CLS]"))
    most = _longest(model, PortKey(names[0]))
    length = max_length if max_length is not None else most
    if length is None or not start[names[0]].shape[1] < length <= (most or length):
        raise ValueError(f"max_length must be above {start[names[0]].shape[1]} and at most {most}, found {max_length}")
    end = end_id if end_id is not None else model.plan.port_size("end_of_text", 0)
    with _seeded(seed, start[names[0]].device):
        if own is not None:
            given = {name: value for name, value in options.items() if value is not None}
            return _with_own(model, own, {**batch, **start}, end, {"max_length": length, **given})
        return _one_by_one(model, {**batch, **start}, key, names, length, end, _chooser(options))


def _own_call(model: RunsCalls, decoder: str | None) -> Call | None:
    """The first call ``generate`` that can be fed."""
    for component in model.plan.components.values():
        if OWN in component.calls and decoder in (None, component.slot):
            found = model.plan.wiring.call(component.path, OWN)
            if isinstance(found, Call):
                return found
    return None


def _chooser(options: dict[str, Any]) -> NextToken:
    given = {name: value for name, value in options.items() if value is not None}
    known = [field.name for field in attrs.fields(NextToken)]
    if unknown := sorted(set(given) - set(known)):
        text = f"writing one token after another has no option {', '.join(unknown)}"
        hint = f"options: {', '.join(known)}; others belong to the decoder's own generate, if it has one"
        raise SpecError(Problem(code="MV201", text=text, hint=hint))
    return NextToken(**given)


def _prompts(batch: Batch, names: Sequence[str]) -> Batch:
    """Ids, validity and word ids of the prompts; nobody knows the words of what is not written yet."""
    ids, valid, words, _ = names
    if ids not in batch or batch[ids].ndim != 2 or batch[ids].shape[1] < 1 or batch[ids].dtype != torch.int64:
        hint = "give at least [CLS] for each row: Tokenizer.encode([''] * rows).token_ids[:, :1]"
        raise DataError(Problem(code="MV505", text=f"a text starts with {ids} (B, P) int64, and the batch holds none", hint=hint))
    if valid in batch and not bool(batch[valid].all()):
        raise DataError(Problem(code="MV505", text=f"{valid}: prompts must be equally long, found padding", hint="group them"))
    return {ids: batch[ids], valid: torch.ones_like(batch[ids], dtype=torch.bool), words: torch.full_like(batch[ids], -1)}


def _longest(model: RunsCalls, key: PortKey) -> int | None:
    provider = model.plan.wiring.provider(key)
    symbol = model.plan.wiring.symbol(provider.path, provider.call, provider.view, provider.spec.dims[-1])
    size = model.plan.wiring.table.size(symbol) if isinstance(symbol, Symbol) else symbol
    return size.bound if isinstance(size, Axis) else size


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draws inside depend on ``seed`` alone, and torch's random state is as before; None = that state itself."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _up_to_the_end(ids: Tensor, end_id: int | None, first: int) -> Tensor:
    """True up to the end of each text, which is looked for from position ``first`` on."""
    if end_id is None:
        return torch.ones_like(ids, dtype=torch.bool)
    is_end = ids == end_id
    is_end[:, :first] = False
    return is_end.cumsum(dim=1) - is_end.long() == 0


def _with_own(model: RunsCalls, call: Call, batch: Batch, end_id: int | None, options: dict[str, Any]) -> GeneratedTexts:
    ports = computed(model, model.plan.wiring.route(key for _, key in call.takes), model.given(batch))
    output = model.run(call, {**{argument: ports[key] for argument, key in call.takes}, **options})
    ids = output.ports[call.gives[0].name]
    is_valid = _up_to_the_end(ids, end_id, 1)
    length = max(1, int(is_valid.sum(dim=1).max()))
    return GeneratedTexts(ids[:, :length], is_valid[:, :length])


def _one_by_one(
    model: RunsCalls, batch: Batch, key: PortKey, names: Sequence[str], length: int, end_id: int | None, choose: NextToken
) -> GeneratedTexts:
    """Append token after token; calls that no id reaches run once."""
    calls = model.plan.wiring.route([key])
    ids_key, valid_key = PortKey(names[0]), PortKey(names[1])
    reached = _reached(calls, {ids_key, valid_key})
    unknown = [(call, taken) for call in calls for _, taken in call.takes if taken in _not_written(model, names)]
    if unknown:
        call, taken = unknown[0]
        text = f"{call} takes {taken}, which nobody knows of a text that is still being written"
        raise SpecError(Problem(code="MV201", text=text, hint=f"what gives {NEXT_WORD} may read {names[0]} and {names[1]}"))
    given = computed(model, [call for call in calls if call not in reached], model.given(batch))
    ids, is_valid = batch[names[0]], batch[names[1]]
    is_done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    while ids.shape[1] < length and not bool(is_done.all()):
        ports = computed(model, reached, {**given, ids_key: ids, valid_key: is_valid})
        found = choose(ports[key][:, -1])
        if end_id is not None:
            found = found.masked_fill(is_done, end_id)
        ids = torch.cat([ids, found[:, None]], dim=1)
        is_valid = torch.cat([is_valid, ~is_done[:, None]], dim=1)
        if end_id is not None:
            is_done |= found == end_id
    return GeneratedTexts(ids, is_valid)


def _reached(calls: Sequence[Call], keys: set[PortKey]) -> list[Call]:
    """The calls that some ports lead to."""
    found = []
    for call in calls:
        if any(key in keys for _, key in call.takes):
            found.append(call)
            keys = {*keys, *call.gives}
    return found


def _not_written(model: RunsCalls, names: Sequence[str]) -> set[PortKey]:
    """What the tokenizer tells of a whole text beside ids and validity."""
    wiring = model.plan.wiring
    others = {key for key, one in wiring.batch.items() if one.path == "tokenizer" and names[0] == "token_ids"}
    return ({PortKey(name) for name in names} | others) - {PortKey(names[0]), PortKey(names[1])}
