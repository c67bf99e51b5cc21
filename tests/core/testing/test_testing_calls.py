"""Calls as the kit sees them: sizes that several share, symbols of their own, the views that they are made for."""

from __future__ import annotations

import pytest
import torch

from medvlp_core.nn import ImageFeatures, Output
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.contract import Contract, Divides, Equal
from medvlp_core.testing.checks import CheckFailed
from medvlp_core.testing.stub_components.specs import AlignmentSpec, FusionSpec, ImageEncoderSpec, MaskingSpec, TextEncoderSpec
from medvlp_core.testing.subject import Example, ExampleCall


def example(spec: ComponentSpec) -> Example:
    return Example(name=spec.declaration.name, role=spec.declaration.role, spec=spec, number=1)


def with_calls(kind: type[ComponentSpec], calls: dict[str, Contract]) -> Example:
    class Changed(kind):  # type: ignore[valid-type, misc]
        def calls(self) -> dict[str, Contract]:
            return calls

    return example(Changed())


def call(kind: type[ComponentSpec], name: str = "forward") -> ExampleCall:
    return next(one for one in example(kind()).calls if one.name == name)


def test_symbols_are_local_to_a_call_unless_weights_depend_on_them() -> None:
    found = with_calls(
        AlignmentSpec,
        {
            "forward": Contract(needs={"a": "B W D"}, sizes=("D",), require=(Equal("W", to=5), Divides("D", by=12)), losses=("x",)),
            "embed_image": Contract(needs={"b": "B W D"}, require=(Equal("W", to=8),)),
        },
    )
    forward, embed = found.calls
    assert (forward.sizes["W"], embed.sizes["W"]) == (5, 8)
    assert forward.sizes["D"] == embed.sizes["D"] == 12
    assert dict(found.dims) == {"D": 12}
    assert [next(iter(one.passes()[0].arguments.values())).shape[1:] for one in found.calls] == [(5, 12), (8, 12)]


def test_a_size_that_suits_no_call_is_named() -> None:
    needs = {"text_tokens": "B L D"}
    calls = {
        "forward": Contract(needs=needs, sizes=("D",), losses=("x",)),
        "embed_text": Contract(needs=needs, require=(Divides("D", by=5),)),
    }
    with pytest.raises(CheckFailed, match=r"the kit cannot make inputs: no size of the kit for D satisfies Divides\(dim='D', by=5"):
        _ = with_calls(AlignmentSpec, calls).sizes


def test_ids_come_from_the_vocabulary_that_any_call_names() -> None:
    calls = {
        "forward": Contract(needs={"vocabulary": "7 5:shape", "text_tokens": "B L D"}, losses=("x",)),
        "embed_text": Contract(needs={"token_ids": "B L:int @masked"}),
    }
    ids = with_calls(AlignmentSpec, calls).calls[1].passes()[0].arguments["token_ids"]
    assert int(ids.max()) < 7
    assert bool((ids == 5).any())


@pytest.mark.parametrize(
    ("kind", "name", "views"),
    [
        (ImageEncoderSpec, "forward", ("clean", "masked")),
        (TextEncoderSpec, "encode", ("clean", "masked")),
        (FusionSpec, "forward", ("clean", "masked")),
        (MaskingSpec, "forward", ("clean", "clean")),
        (AlignmentSpec, "forward", ("clean", "clean")),
        (AlignmentSpec, "embed_image", ("clean", "masked")),
    ],
)
def test_calls_without_losses_are_made_for_each_view(kind: type[ComponentSpec], name: str, views: tuple[str, str]) -> None:
    assert call(kind, name).views == views
    assert tuple(one.view for one in call(kind, name).passes()) == views


def test_training_goes_through_losses_or_else_through_every_call() -> None:
    assert [one.name for one in example(AlignmentSpec()).trained] == ["forward"]
    assert [one.name for one in example(TextEncoderSpec()).trained] == ["embed", "encode"]


def test_what_a_call_gives_hangs_on_its_arguments() -> None:
    encoder = call(ImageEncoderSpec)
    assert encoder.given(["image"])["image_tokens"].layout is None
    assert encoder.given(["image", "image_is_masked"])["image_tokens"].layout == "dropped"


def test_another_form_of_output_is_named() -> None:
    tensor = torch.zeros(1)
    with pytest.raises(CheckFailed, match=r"example 1 of kit\.text_encoder, call embed: embed returned tuple, expected a tensor"):
        call(TextEncoderSpec, "embed").read((tensor,))
    with pytest.raises(CheckFailed, match="forward returned Output, expected the NamedTuple of its role, ImageFeatures"):
        call(ImageEncoderSpec).read(Output())
    with pytest.raises(CheckFailed, match="forward returned dict, expected an Output"):
        call(AlignmentSpec).read({"global": tensor})
    with pytest.raises(CheckFailed, match="the losses are list, expected a dict of tensors by name"):
        call(AlignmentSpec).read(Output(losses=[tensor]))  # type: ignore[arg-type]
    assert call(ImageEncoderSpec).read(ImageFeatures(tensor, tensor)).ports.keys() == {"image_tokens", "image_prefix"}
