"""Conformance of maskings: what may be masked, how much, and that every draw is another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medvlp_core.spec.contract import CLEAN
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import NotApplicable, check, expect
from medvlp_core.testing.subject import Example, Pass, Subject
from medvlp_core.testing.synthetic_batch import FIRST_WORD

DRAWS = 8
#: Of texts and images in sixteen pairs, a share masked on average may be off by so much.
SHARE_TOLERANCE = 0.15


def draws(subject: Subject, *, lengths: tuple[int, ...] | None = None) -> Iterator[tuple[Example, Pass, dict[str, Tensor]]]:
    """Several plans of every example, each from another seed."""
    for example in subject.examples:
        (call,) = example.calls
        module = example.build()
        one = call.make_pass(CLEAN, lengths or (9, 5, 2))
        for seed in range(DRAWS):
            torch.manual_seed(seed)
            with torch.no_grad():
                yield example, one, call.run(module, one.arguments).ports


def gives(subject: Subject, *ports: str) -> None:
    """Maskings of patches alone have no words to go wrong with, and the reverse.

    Raises:
        NotApplicable: no example gives all of these ports.
    """
    for example in subject.examples:
        given = {spec.port for contract in example.contracts.values() for spec in contract.gives.values()}
        if missing := [port for port in ports if port not in given]:
            raise NotApplicable(f"it does not give {', '.join(missing)}")


@check("masking", roles=(Role.MASKING,))
def masks_no_special_tokens(subject: Subject) -> None:
    """Only words are masked: never [CLS], another special token or padding."""
    gives(subject, "text_is_masked")
    for example, one, plan in draws(subject):
        is_word = one.synthetic_batch.fixed["word_ids", None] >= 0
        wrong = plan["text_is_masked"] & ~is_word
        places = [f"({row}, {column})" for row, column in wrong.nonzero().tolist()[:3]]
        expect(not wrong.any(), f"{example}: text_is_masked is True at special tokens or padding, at {', '.join(places)}")


@check("masking", roles=(Role.MASKING,))
def replaces_masked_tokens_only(subject: Subject) -> None:
    """The ids of the masked view differ from the given ones at masked tokens only, and stay inside the vocabulary."""
    gives(subject, "text_is_masked", "token_ids")
    kept: dict[str, list[Tensor]] = {}
    for example, one, plan in draws(subject):
        ids, is_masked = one.synthetic_batch.fixed["token_ids", CLEAN], plan["text_is_masked"]
        wrong = (plan["token_ids"] != ids) & ~is_masked
        expect(not wrong.any(), f"{example}: {int(wrong.sum())} token ids changed where text_is_masked is False")
        low, high, size = int(plan["token_ids"].min()), int(plan["token_ids"].max()), one.synthetic_batch.vocabulary
        expect(low >= 0 and high < size, f"{example}: it gives token ids from {low} to {high}, and the vocabulary has {size}")
        kept.setdefault(str(example), []).append((plan["token_ids"] == ids)[is_masked])
    for label, parts in kept.items():
        is_kept = torch.cat(parts)
        expect(not len(is_kept) or not is_kept.all(), f"{label}: every masked token keeps its id; put [MASK] in its place")


@check("masking", roles=(Role.MASKING,))
def masks_as_many_patches_in_every_image(subject: Subject) -> None:
    """The number of masked patches is the same in every row, so that dropping them leaves a tensor; some stay visible."""
    gives(subject, "image_is_masked")
    for example, one, plan in draws(subject):
        counts = plan["image_is_masked"].sum(dim=1).tolist()
        expect(len(set(counts)) == 1, f"{example}: the images have {counts} masked patches, expected one number")
        expect(counts[0] < one.synthetic_batch.patches, f"{example}: all {one.synthetic_batch.patches} patches are masked")


@check("masking", roles=(Role.MASKING,))
def masks_something_else_each_time(subject: Subject) -> None:
    """Over several seeds something is masked, and not always the same; the images of a batch differ too."""
    seen: dict[str, dict[str, list[Tensor]]] = {}
    for example, _, plan in draws(subject):
        for port in (port for port in plan if plan[port].dtype == torch.bool):
            seen.setdefault(str(example), {}).setdefault(port, []).append(plan[port])
    for label, ports in seen.items():
        hiding = {port: plans for port, plans in ports.items() if any(bool(plan.any()) for plan in plans)}
        expect(bool(hiding), f"{label}: in {DRAWS} draws it masks nothing")
        for port, plans in hiding.items():
            differs = any(not torch.equal(plan, plans[0]) for plan in plans[1:])
            expect(differs, f"{label}: {port} is the same after each of {DRAWS} seeds; draw from torch's global random state")
        is_shared = all(bool((plan == plan[:1]).all()) for plan in hiding.get("image_is_masked", ()))
        expect("image_is_masked" not in hiding or not is_shared, f"{label}: every image of a batch loses the same patches")


@check("masking", roles=(Role.MASKING,))
def masks_the_declared_share(subject: Subject) -> None:
    """Parameters named ``image_ratio`` and ``text_ratio`` mean the average share of patches and of words."""
    ratios = {
        (str(example), name): float(value)
        for example in subject.examples
        for name in ("image_ratio", "text_ratio")
        if isinstance(value := getattr(example.spec, name, None), (int, float))
    }
    if not ratios:
        raise NotApplicable("it has no number named image_ratio or text_ratio")
    shares: dict[tuple[str, str], list[float]] = {}
    for example, one, plan in draws(subject, lengths=(9,) * 16):
        words = one.synthetic_batch.fixed["word_ids", None] >= 0
        found = {"image_ratio": plan.get("image_is_masked"), "text_ratio": plan.get("text_is_masked")}
        for name, is_masked in ((name, one) for name, one in found.items() if one is not None):
            is_masked = is_masked[words] if name == "text_ratio" else is_masked
            shares.setdefault((str(example), name), []).append(float(is_masked.float().mean()))
    for (label, name), wanted in ((key, wanted) for key, wanted in ratios.items() if key in shares):
        mean = sum(shares[label, name]) / DRAWS
        expect(abs(mean - wanted) <= SHARE_TOLERANCE, f"{label}: {name} is {wanted:g}, and {mean:.2f} was masked on average")


@check("masking", roles=(Role.MASKING,))
def depends_on_no_padding(subject: Subject) -> None:
    """The ids at padding positions play no part: with others there, the same seed masks the same words."""
    reading = [
        (call, name) for call in subject.each_call() for name, need in call.contract.needs.items() if need.port == "token_ids"
    ]
    if not reading:
        raise NotApplicable("it does not take token ids")
    for call, name in reading:
        module = call.example.build()
        one = call.make_pass(CLEAN, (9, 5, 2))
        valid = one.synthetic_batch.fixed["text_is_valid", None]
        ids = torch.where(valid, one.arguments[name], FIRST_WORD + 1)
        found = []
        for arguments in (one.arguments, {**one.arguments, name: ids}):
            torch.manual_seed(7)
            plan = call.run(module, arguments).ports
            found.append([value[valid] if port == "token_ids" else value for port, value in plan.items()])
        is_equal = all(torch.equal(first, second) for first, second in zip(*found, strict=True))
        expect(is_equal, f"{call}: other ids at padding positions change what is masked; go by text_is_valid")
