"""Conformance of image encoders and of decoders: what is masked is not seen, and tokens stand in raster order."""

from __future__ import annotations

import torch
from torch import Tensor

from medvlp_core.spec.contract import CLEAN
from medvlp_core.spec.roles import Role
from medvlp_core.testing.behaviour_checks import everything
from medvlp_core.testing.checks import NotApplicable, check, expect
from medvlp_core.testing.subject import ExampleCall, Subject
from medvlp_core.testing.synthetic_batch import MASKED, all_close, number_of, other_values

#: Of the patches, so many must change their own token most when their pixels change.
OWN_SHARE = 0.75


def patch_pixels(call: ExampleCall, patch: int, image: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the pixels of a patch, in raster order.

    Raises:
        NotApplicable: the grid is not known, or does not divide the image.
    """
    grid = call.example.declared("image_grid")
    rows, columns = (number_of(dim, call.sizes) for dim in grid.dims) if grid else (None, None)
    if rows is None or columns is None:
        raise NotApplicable("the contract does not say how many rows and columns of patches there are")
    if image.shape[2] % rows or image.shape[3] % columns:
        raise NotApplicable("the grid does not divide the image")
    high, wide = image.shape[2] // rows, image.shape[3] // columns
    row, column = divmod(patch, columns)
    return slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide)


@check("masking", roles=(Role.IMAGE_ENCODER,))
def does_not_see_masked_patches(subject: Subject) -> None:
    """Pixels of masked patches change nothing in the masked view."""
    generator = torch.Generator().manual_seed(3)
    masked = [call for call in subject.each_call() if {"image", "image_is_masked"} <= _by_port(call).keys()]
    if not masked:
        raise NotApplicable("it has no masked view")
    for call in masked:
        module = call.example.build().eval()
        one, names = call.make_pass(MASKED, (9, 5)), _by_port(call)
        image = one.arguments[names["image"]]
        other = image.clone()
        for row, patch in one.arguments[names["image_is_masked"]].nonzero().tolist():
            high, wide = patch_pixels(call, patch, image)
            other[row, :, high, wide] = other_values(image[row, :, high, wide], generator)
        first = everything(call, module, one.arguments)
        second = everything(call, module, {**one.arguments, names["image"]: other})
        for port, tensor in first.items():
            text = f"{call}: pixels of masked patches change {port}; drop or replace these patches before tokens mix"
            expect(all_close(tensor, second[port]), text)


def _by_port(call: ExampleCall) -> dict[str, str]:
    """The arguments of a call by their ports."""
    return {call.port(name): name for name in call.contract.needs}


@check("contract", roles=(Role.IMAGE_ENCODER,))
def keeps_raster_order(subject: Subject) -> None:
    """Token i belongs to patch i: its pixels change this token most. In the masked view the visible ones keep their order."""
    for call in subject.each_call():
        names = _by_port(call)
        if "image" not in names or "image_tokens" not in {spec.port for spec in call.contract.gives.values()}:
            continue
        module = call.example.build().eval()
        for view in dict.fromkeys(call.views) if "image_is_masked" in names else (CLEAN,):
            one = call.make_pass(view, (9,))
            image, patches = one.arguments[names["image"]], list(range(call.example.patches))
            masks = [] if view == CLEAN else one.arguments[names["image_is_masked"]][0].nonzero().flatten().tolist()
            shown = [patch for patch in patches if patch not in masks]
            is_dropped = call.given(one.arguments)["image_tokens"].layout == "dropped"
            places = shown if is_dropped else patches
            whole = everything(call, module, one.arguments)["image_tokens"]
            own = 0
            for patch in shown:
                high, wide = patch_pixels(call, patch, image)
                other = image.clone()
                noise = torch.randn(image[:, :, high, wide].shape, generator=torch.Generator().manual_seed(patch))
                other[:, :, high, wide] += noise
                moved = everything(call, module, {**one.arguments, names["image"]: other})["image_tokens"] - whole
                own += places[int(moved[0].square().sum(dim=1).argmax())] == patch
            text = f"{call}: in the {view} view {own} of {len(shown)} patches change their own token most"
            expect(own >= OWN_SHARE * len(shown), f"{text}; give the tokens row by row, from the upper left")


@check("behaviour", roles=(Role.DECODER,))
def does_not_see_the_answer(subject: Subject) -> None:
    """What a decoder has to reconstruct changes its loss and not its prediction; one that writes texts sees only earlier words."""
    generator = torch.Generator().manual_seed(3)
    for call, module, one in subject.passes():
        if not call.contract.losses:
            continue
        needs = call.contract.needs
        answers = [name for name in one.arguments if needs[name].port in ("image", "image_target")]
        ids = [name for name in one.arguments if needs[name].port == "token_ids" and needs[name].view in (None, CLEAN)]
        is_writer = bool(ids) and not any(need.port == "text_is_masked" for need in needs.values())
        if not answers and not ids:
            raise NotApplicable("it takes neither images nor token ids to reconstruct")
        other = {
            name: other_values(one.arguments[name], generator, vocabulary=one.synthetic_batch.vocabulary)
            for name in (*answers, *ids)
        }
        if is_writer:  # it may read the words before each that it writes: only the last of a text is an answer and no input
            last = torch.tensor(one.synthetic_batch.lengths)[:, None] - 1 == torch.arange(max(one.synthetic_batch.lengths))
            other |= {name: torch.where(last, other[name], one.arguments[name]) for name in ids}
        first, second = (everything(call, module, given) for given in (one.arguments, {**one.arguments, **other}))
        told = ", ".join(other)
        changes = [name for name, value in first.items() if name.startswith("loss.") and not torch.equal(value, second[name])]
        expect(bool(changes), f"{call}: another {told} changes none of its losses")
        for port, tensor in first.items():
            if not port.startswith("loss."):
                other_tensor = second[port]
                if call.is_text(port):
                    valid = one.synthetic_batch.fixed["text_is_valid", None]
                    tensor, other_tensor = tensor[valid], other_tensor[valid]
                rows = torch.isclose(tensor, other_tensor, rtol=1e-4, atol=1e-5).reshape(-1, tensor.shape[-1]).all(dim=1)
                # What it would write after the last word, if it has a row for that, may depend on it.
                full = (sum(one.synthetic_batch.lengths), one.synthetic_batch.batch * max(one.synthetic_batch.lengths))
                is_same = int((~rows).sum()) <= (one.synthetic_batch.batch if is_writer and len(rows) in full else 0)
                expect(is_same, f"{call}: {port} depends on {told}, which it has to reconstruct")
