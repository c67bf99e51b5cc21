"""The composed model on real images: outputs, later use of the encoders, and errors of built parts."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch

from medvlp_core.errors import DataError, MedvlpError, PluginError, SpecError
from medvlp_core.model.between_steps import PartFailed
from medvlp_core.model.build import BuiltRun, build_component, build_run, build_source
from medvlp_core.nn.batch import Batch, FusedFeatures, Output, TokenBatch
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract, Dims


@pytest.fixture
def built(plan_text) -> BuiltRun:
    plan, _ = plan_text()
    return build_run(plan, seed=0)


@pytest.fixture
def batch(built: BuiltRun) -> Batch:
    return next(iter(built.pipeline.loader("val", batch_size=5)))


@pytest.fixture(autouse=True)
def same_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_the_loss_is_the_weighted_sum_of_the_terms(plan_text, micro, batch) -> None:
    plan, _ = plan_text(micro, "set losses.gla.local=0.25", "set losses.image.reconstruction=0")
    model = build_run(plan, seed=0).model
    output = model(batch)
    terms = output.losses
    expected = terms["gla.global"] + 0.25 * terms["gla.local"] + terms["report.mlm"]
    torch.testing.assert_close(output.loss, expected)
    assert output.ports["image_is_masked@masked"].sum(1).tolist() == [12] * 5  # 75 % of 16 patches


def test_a_step_shows_what_the_masking_and_the_heads_gave(built: BuiltRun, batch: Batch) -> None:
    output = built.model(batch)
    masked = ["image_is_masked@masked", "text_is_masked@masked", "token_ids@masked"]
    assert list(output.ports) == [*masked, "image.patch_prediction", "report.word_logits"]
    assert output.ports["report.word_logits"].shape == (int(output.ports["text_is_masked@masked"].sum()), 300)


def test_the_sum_is_in_the_order_of_the_contract_however_a_module_orders_its_terms(built: BuiltRun, batch: Batch) -> None:
    gla, seed = built.model.alignments["gla"], torch.get_rng_state()
    right, before = gla.forward, built.model(batch)
    torch.set_rng_state(seed)
    gla.forward = lambda **needs: Output(losses=dict(reversed(right(**needs).losses.items())))  # type: ignore[method-assign]
    after = built.model(batch)
    assert list(after.losses) == list(before.losses) == list(built.plan.losses)
    assert torch.equal(after.loss, before.loss)


def test_weights_depend_on_the_seed_only(plan_text) -> None:
    plan, _ = plan_text()
    first, same, other = (build_run(plan, seed=seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_clean_encoders_and_embeddings(built: BuiltRun, batch: Batch) -> None:
    model = built.model.eval()
    tokens = TokenBatch(batch["token_ids"], batch["text_is_valid"], batch["word_ids"])
    assert model.encode_image(batch["image"]).image_tokens.shape == (5, 16, 32)
    assert model.encode_text(tokens).shape == (*batch["token_ids"].shape, 32)
    image, text = model.embed_image(batch["image"]), model.embed_text(tokens, alignment="gla")
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(5))


def test_single_ports_run_only_what_they_need(built: BuiltRun, batch: Batch) -> None:
    model = built.model.eval()
    model.masking = None  # the clean view must not touch it
    found = model.ports(batch, "fused_text_tokens", "image_tokens")
    assert found["fused_text_tokens"].shape == (*batch["token_ids"].shape, 32)
    torch.testing.assert_close(found["image_tokens"], model.encode_image(batch["image"]).image_tokens)


def test_ports_go_by_short_and_by_full_names_in_any_view(built: BuiltRun, batch: Batch) -> None:
    model = built.model.eval()
    short, full, masked = "image_tokens", "image_encoder.image_tokens", "image_tokens@masked"
    found = model.ports(batch, short, full, masked, "gla.image_embedding", "image_is_masked@masked", "token_ids@masked")
    assert list(found) == [short, full, masked, "gla.image_embedding", "image_is_masked@masked", "token_ids@masked"]
    assert torch.equal(found[short], found[full])
    assert [found[name].shape for name in (short, masked)] == [(5, 16, 32), (5, 4, 32)]
    assert torch.equal(found["gla.image_embedding"], model.embed_image(batch["image"]))


def test_a_batch_needs_to_hold_only_what_the_ports_come_from(built: BuiltRun, batch: Batch) -> None:
    model = built.model.eval()
    assert model.ports({"image": batch["image"]}, "image_tokens")["image_tokens"].shape == (5, 16, 32)
    with pytest.raises(SpecError) as caught:
        model.ports({"image": batch["image"]}, "fused_text_tokens")
    (problem,) = caught.value.problems
    assert (problem.code, problem.hint) == ("MV201", "the batch holds image")
    assert problem.text.startswith("fused_text_tokens comes from token_ids")
    lacking = {name: value for name, value in batch.items() if name != "image_target"}
    with pytest.raises(DataError, match=r"\[MV505\] model.decoders.image \(mpma.image_decoder\) takes image_target"):
        model(lacking)


def test_attention_maps_are_distributions_over_patches(built: BuiltRun, batch: Batch) -> None:
    found = built.model.eval().attention_maps_and_provider(batch)
    assert found is not None
    maps, provider = found
    assert provider == "model.fusion"
    assert torch.equal(maps, built.model.attention_maps(batch))
    assert maps.shape == (*batch["token_ids"].shape, 16)
    torch.testing.assert_close(maps[batch["text_is_valid"]].sum(-1), torch.ones(int(batch["text_is_valid"].sum())))


def test_unknown_ports_and_alignments_are_named(built: BuiltRun, batch: Batch, plan_text, micro) -> None:
    with pytest.raises(SpecError, match=r"\[MV201\] this model does not give the port lung_mask"):
        built.model.ports(batch, "lung_mask")
    with pytest.raises(SpecError, match=r"(?s)no alignment 'clip'.*alignments of this model: gla"):
        built.model.embed_image(batch["image"], alignment="clip")
    plan, _ = plan_text(micro, "unset model.alignments")
    with pytest.raises(SpecError, match="no alignment, so there is no shared space"):
        build_run(plan, seed=0).model.embed_image(batch["image"])


def test_wrong_dtypes_and_shapes_are_refused(built: BuiltRun, batch: Batch) -> None:
    raw = (batch["image"] * 255).to(torch.uint8)
    with pytest.raises(DataError) as caught:
        built.model.encode_image(raw)
    assert "[MV505] image must be float of shape (B, 1, 32, 32), found uint8 of shape (5, 1, 32, 32)" in str(caught.value)
    with pytest.raises(DataError, match=r"found float32 of shape \(5, 32, 32\)"):
        built.model({**batch, "image": batch["image"][:, 0]})
    with pytest.raises(DataError, match=r"token_ids must be int64 of shape \(B, L\) like token_ids, found float32"):
        built.model({**batch, "token_ids": batch["token_ids"].float()})
    with pytest.raises(DataError, match="text_is_valid must be bool"):
        built.model.encode_text(TokenBatch(batch["token_ids"], batch["text_is_valid"].long(), batch["word_ids"]))


def test_data_and_tokenizer_may_be_absent_until_they_are_needed(plan_text, micro) -> None:
    plan, report = plan_text(micro, "unset data")
    assert not report.has_errors
    with pytest.raises(SpecError, match=r"\[MV105\] the recipe has no `data` block"):
        build_source(plan)


# ----------------------------------------------------------------------------------------------------- parts that are at fault


class Narrow(torch.nn.Module):
    """An image encoder that is not one."""

    def __init__(self, spec: ComponentSpec, dims: Dims) -> None:
        super().__init__()


class Explodes:
    """Cannot be built."""

    def __init__(self, spec: ComponentSpec, dims: Dims) -> None:
        raise KeyError("no such weights")


def faulty(plan, path: str, build: str):
    """The plan's component at ``path`` with another build string."""
    old = plan.components[path]

    @component("acme.faulty", role=old.role, build=build)
    @attrs.frozen(kw_only=True)
    class FaultySpec(ComponentSpec):
        """A faulty part."""

        size: int = param(1, help="size")

        def contract(self) -> Contract:
            return old.contract

        @classmethod
        def examples(cls):
            return (cls(), cls(size=2))

    plan.host.components._distributions.setdefault("acme.faulty", "acme 1.0")
    return attrs.evolve(old, spec=FaultySpec(), name="acme.faulty")


def test_a_build_that_raises_names_part_and_distribution(plan_text) -> None:
    plan, _ = plan_text()
    with pytest.raises(SpecError) as caught:
        build_component(plan, faulty(plan, "model.fusion", f"{__name__}:Explodes"))
    assert "[MV303] model.fusion (acme.faulty) could not be built: KeyError: 'no such weights'" in str(caught.value)
    assert "from acme 1.0" in str(caught.value)


def test_a_part_that_does_not_implement_its_role(plan_text) -> None:
    plan, _ = plan_text()
    with pytest.raises(PluginError, match=r"\[MV302\].*does not implement ImageEncoder"):
        build_component(plan, faulty(plan, "model.image_encoder", f"{__name__}:Narrow"))


def test_a_part_that_does_not_exist(plan_text) -> None:
    plan, _ = plan_text()
    with pytest.raises(MedvlpError, match=r"\[MV303\].*acme_is_not_installed"):
        build_component(plan, faulty(plan, "model.fusion", "acme_is_not_installed.fusion:Gate"))


def test_a_dimension_that_is_not_declared_is_named(plan_text) -> None:
    plan, _ = plan_text()
    with pytest.raises(SpecError, match=r"\[MV206\] model.fusion asks for dimension Dx, which its contract does not list"):
        plan.dims("model.fusion")["Dx"]


def test_an_undeclared_loss_is_refused(built: BuiltRun, batch: Batch) -> None:
    gla = built.model.alignments["gla"]
    losses = {"global": torch.zeros(()), "surprise": torch.zeros(())}
    gla.forward = lambda **needs: Output(losses=losses)  # type: ignore[method-assign]
    with pytest.raises(SpecError, match=r"returned the losses global, surprise, expected global, local, as its contract declares"):
        built.model(batch)


WRONG = {
    "tuple": ("fusion", lambda found: tuple(found), "returned tuple of 3, expected FusedFeatures of medvlp_core.nn.batch"),
    "port": (
        "fusion",
        lambda found: FusedFeatures(fused_image_tokens=found.fused_text_tokens),
        "returned only fused_image_tokens, expected fused_text_tokens, as its contract declares",
    ),
    "no tensor": (
        "fusion",
        lambda found: FusedFeatures(fused_text_tokens=[1, 2]),
        "returned list of 2 as fused_text_tokens, expected a tensor",
    ),
    "mask": ("masking", lambda found: None, "returned NoneType, expected MaskPlan of medvlp_core.nn.batch"),
    "decoder": (
        "decoders.report",
        lambda found: dict(found.losses),
        "returned dict of 1, expected Output of medvlp_core.nn.batch",
    ),
    "alignment": ("alignments.gla", lambda found: found.losses, "returned dict of 2, expected Output of medvlp_core.nn.batch"),
    "swapped": (
        "decoders.report",
        lambda found: Output(found.losses["mlm"], found.losses),
        "returned a tensor (float32 of shape ()) of ports, expected a dict with word_logits",
    ),
    "prediction": (
        "decoders.report",
        lambda found: Output(losses=found.losses),
        "returned no ports, expected word_logits, as its contract declares",
    ),
    "losses": (
        "alignments.gla",
        lambda found: Output(losses=found.losses["global"]),
        "returned a tensor (float32 of shape ()) of losses, expected a dict with global, local",
    ),
    "vector": (
        "alignments.gla",
        lambda found: Output(losses=found.losses | {"local": torch.zeros(3)}),
        "returned a tensor (float32 of shape (3,)) as the loss 'local', expected a scalar tensor",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_module_that_returns_something_else_is_named(case: str, built: BuiltRun, batch: Batch) -> None:
    path, change, text = WRONG[case]
    part = built.model.get_submodule(path)
    right = part.forward
    part.forward = lambda **needs: change(right(**needs))  # type: ignore[method-assign,assignment]
    with pytest.raises(SpecError) as caught:
        built.model(batch)
    (problem,) = caught.value.problems
    component = built.plan.components[f"model.{path}"]
    assert (problem.code, problem.text, problem.position) == ("MV206", f"{component.label} {text}", component.position())
    namespace = component.name.partition(".")[0]
    assert problem.details[0].endswith(f" from medvlp-{namespace} {plugin_version(built, namespace)}")


def test_a_module_that_raises_is_named_with_its_authors_line(built: BuiltRun, batch: Batch) -> None:
    def forward(**needs: torch.Tensor) -> None:
        raise KeyError("no such word")

    built.model.fusion.forward = forward  # type: ignore[union-attr,method-assign,assignment]
    with pytest.raises(PartFailed) as caught:
        built.model(batch)
    (problem,) = caught.value.problems
    component = built.plan.components["model.fusion"]
    line = forward.__code__.co_firstlineno + 1
    said = f"{component.label} failed: KeyError: 'no such word' (in test_model_composed.py, line {line})"
    assert (problem.code, problem.text, problem.position) == ("MV306", said, component.position())
    assert problem.details == (f"medvlp_mpma.fusion:MemoryFusion from medvlp-mpma {plugin_version(built, 'mpma')}",)
    assert isinstance(caught.value.__cause__, KeyError)


def test_too_little_memory_is_left_to_those_who_know_what_to_do(built: BuiltRun, batch: Batch) -> None:
    def forward(**needs: torch.Tensor) -> None:
        raise torch.OutOfMemoryError

    built.model.fusion.forward = forward  # type: ignore[union-attr,method-assign,assignment]
    with pytest.raises(torch.OutOfMemoryError):
        built.model(batch)


def plugin_version(built: BuiltRun, namespace: str) -> str:
    return next(plugin.version for plugin in built.plan.host.plugins if plugin.namespace == namespace)


def test_an_encoder_that_returns_no_tensor_is_named(built: BuiltRun, batch: Batch) -> None:
    built.model.text_encoder.encode = lambda *arguments, **needs: ("masked",)  # type: ignore[union-attr,method-assign,assignment]
    with pytest.raises(SpecError, match=r"model.text_encoder \(standard.bert\) returned tuple of 1 from encode, expected a tensor"):
        built.model(batch)


def test_a_built_run_shows_itself_in_a_few_lines(built: BuiltRun) -> None:
    lines = repr(built).splitlines()
    count = sum(one.numel() for one in built.model.parameters())
    assert lines[0] == f"BuiltRun {built.plan.name}"
    assert lines[-1].split() == ["parameters", f"{count:,}"]
    assert len(lines) == 2 + sum(path.startswith(("data", "tokenizer", "model.")) for path in built.plan.components)
    assert f"<td>{count:,}</td>" in built._repr_html_()
