"""Rows that modules get after a step (``Contract.after``, ``after_step``): for queues and prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from state_bundle import RECIPE, Images, Run, messages, plan_of
from torch import Tensor

from medvlp_core.cli.explain import explanation
from medvlp_core.cli.explain_json import explanation_data
from medvlp_core.data.order import DataOrder, Share
from medvlp_core.errors import PluginError, SpecError
from medvlp_core.model.between_steps import PartFailed
from medvlp_core.model.build import build_model
from medvlp_core.training.events import StepSkipped
from medvlp_core.training.rows import rows_of_step


def queued(block: str = "") -> str:
    """The small recipe with a queue of pooled vectors."""
    parts = "  parts:\n    pool: {use: st.pool}\n  decoders:\n    far: {use: st.queue" + (f", {block}" if block else "") + "}\n"
    return RECIPE.replace("  decoders:\n", parts)


def expected_rows(run: Run, step: int, *, port: str = "pool.pooled") -> Tensor:
    """What a step has to hand on, in the order of its records, of the weights that it began with."""
    order = DataOrder(count=23, batch_size=8, seed=0, drop_last=False, least=1)
    batch = run.images.batch([draw.row for draw in order.pairs(step)])
    with torch.no_grad():
        return run.model.ports({"image": batch["image"]}, port)[port]


def handed(run: Run) -> list[Tensor]:
    found: list[Tensor] = run.model.decoders["far"].handed  # type: ignore[assignment]
    return found


# ---------------------------------------------------------------------------------------------------------------- what is handed


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_rows_of_a_whole_step_come_once_in_the_order_of_its_records(micro_batches: int) -> None:
    run = Run.of(queued().replace("steps: 7", f"steps: 7, gradient_accumulation_steps: {micro_batches}"))
    expected = [expected_rows(run, 0)]
    run.train(seen=lambda run: expected.append(expected_rows(run, run.state.step)) if run.state.step < 7 else None)
    assert len(handed(run)) == 7
    assert [len(rows) for rows in handed(run)] == [8, 8, 7, 8, 8, 7, 8]
    torch.testing.assert_close(handed(run), expected, rtol=1e-12, atol=1e-12)
    assert not any(rows.requires_grad for rows in handed(run))


def test_they_come_after_the_weights_and_the_followers_have_moved() -> None:
    run = Run.of(queued().replace("    pool:", "    teacher: {follow: model.image_encoder, decay: 0.5}\n    pool:"))
    seen: list[bool] = []
    source, teacher = run.model.image_encoder.embed.weight, run.model.parts["teacher"].embed.weight  # type: ignore[union-attr]
    before = source.detach().clone()

    def look(**rows: Tensor) -> None:
        seen.append(not torch.equal(source, before) and torch.allclose(teacher, (before + source) / 2))

    run.model.decoders["far"].after_step = look
    run.train(stop_after=1)
    assert seen == [True]


def test_a_port_of_its_own_may_come_back() -> None:
    run = Run.of(queued("after: 'projected: T D'"))
    expected = expected_rows(run, 0, port="far.projected")
    run.train(stop_after=1)
    torch.testing.assert_close(handed(run)[0], expected, rtol=1e-12, atol=1e-12)


def test_a_call_that_only_rows_need_runs_without_a_graph() -> None:
    text = queued().replace("    pool: {use: st.pool}\n", "    pool: {use: st.pool}\n  alignments:\n    nce: {use: st.contrast}\n")
    plan = plan_of(text)
    calls = [str(call) for call in plan.calls]
    assert calls[-1] == "model.alignments.nce.embed_image"
    run = Run.of(text)
    run.train(stop_after=2)
    assert run.model.alignments["nce"].mean.any()


def test_an_optional_row_that_nothing_fills_is_skipped() -> None:
    assert plan_of(queued("after: 'extra: T D?'")).after == {}


# ---------------------------------------------------------------------------------------------------- when, and what is kept


def test_a_skipped_step_hands_on_nothing() -> None:
    class Bad(Images):
        bad_rows = (9,)

    run = Run.of(queued())
    run.images = Bad()
    counts: list[tuple[bool, int]] = []
    run.train(seen=lambda run: counts.append((isinstance(run.events[-1], StepSkipped), len(handed(run)))))
    assert any(skipped for skipped, _ in counts)
    assert [count for _, count in counts] == [sum(not one for one, _ in counts[: number + 1]) for number in range(7)]
    assert int(run.model.decoders["far"].steps) == len(handed(run))  # type: ignore[arg-type]
    assert torch.isfinite(run.model.decoders["far"].queue).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("more", ["", ", gradient_accumulation_steps: 3"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, more: str) -> None:
    text = queued("draws: true").replace("steps: 7", f"steps: 7{more}")
    whole = Run.of(text).train()
    folder = Run.of(text).train(stop_after=3).save(tmp_path / "checkpoints" / "step-3")
    resumed = Run.of(text, seed=99, resumed=folder).train()
    states = [dict(run.model.state_dict()) for run in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["decoders.far.queue"].any()


def test_several_micro_batches_end_as_one_batch_does() -> None:
    whole, split = (
        dict(Run.of(queued().replace("steps: 7", f"steps: 7, gradient_accumulation_steps: {count}")).train().model.state_dict())
        for count in (1, 3)
    )
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-12)


def test_validation_hands_on_nothing() -> None:
    run = Run.of(queued())
    run.model.eval()
    output = run.model(run.images.batch([0, 1]))
    assert output.rows["pool.pooled"].shape == (2, 4)
    assert not handed(run)


def test_what_shares_or_follows_a_module_does_not_feed_its_queue() -> None:
    more = "    slow: {follow: model.decoders.far, decay: 0.9}\n    again: {share: model.decoders.far}\n"
    plan = plan_of(queued().replace("    fit: {use: st.fit}\n", "    fit: {use: st.fit}\n" + more))
    assert [*plan.after] == ["model.decoders.far"]


def test_rows_of_several_processes_are_put_into_the_order_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = list(range(11))
    shares = [Share(rank=rank, world=2, micro_batches=2) for rank in range(2)]
    parts: list[list[dict[str, Tensor]]] = [[{"x": torch.tensor(part)} for part in share.of(pairs)] for share in shares]  # type: ignore[arg-type]
    sizes = shares[0].sizes(11)
    assert sizes == [[len(one["x"]) for one in part] for part in parts]
    everything = torch.cat([one["x"] for part in parts for one in part])
    monkeypatch.setattr("medvlp_core.training.rows.gather_rows", lambda rows, counts: everything)
    assert rows_of_step(parts[0], sizes)["x"].tolist() == pairs


# ------------------------------------------------------------------------------------------------------------------ how it is shown


def test_it_is_shown() -> None:
    plan = plan_of(queued())
    assert "       after the step: after_step(pooled = pooled (B, D=4), of all records)" in list(explanation(plan))
    assert [one["port"] for one in explanation_data(plan)["after"]["model.decoders.far"]] == ["pool.pooled"]


# ---------------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (
            "nothing: T D",
            "[MV201] model.decoders.far (st.queue): after names nothing, "
            "no argument of forward that is filled and no port of its own\n"
            "    hint: name an argument, or a port that the component gives; '...?' is optional",
        ),
        (
            "norm: T",
            "[MV202] model.decoders.far (st.queue): norm is T here, and :float from model.decoders.far (st.queue): "
            "1 against 0 dimensions\n"
            "recipe.yaml:7:16 [MV202] model.decoders.far (st.queue): after names norm, and norm (:float) has no row for each "
            "record\n"
            "    hint: its first axis must be the batch",
        ),
        (
            "pooled: T D:int",
            "[MV204] model.decoders.far (st.queue): pooled is T D:int here, and B D from model.parts.pool (st.pool): "
            "dtype int against float",
        ),
        (
            "pooled: T 7",
            "[MV202] model.decoders.far (st.queue): pooled is (T 7) here, and (B D=4) from model.parts.pool (st.pool)\n"
            "    4 comes from st.encoder (recipe.yaml:3:24)\n"
            "    7 comes from st.queue (recipe.yaml:7:16)\n"
            "    hint: make both 4 or both 7",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_at_check_time(after: str, expected: str) -> None:
    assert messages(queued(f"after: '{after}'")) == f"recipe.yaml:7:16 {expected}"


def test_rows_that_two_calls_name_are_refused() -> None:
    block = "  alignments:\n    nce: {use: st.contrast, is_twice: true}\n  decoders:\n"
    assert messages(queued().replace("  decoders:\n", block)) == (
        "recipe.yaml:7:16 [MV209] model.alignments.nce (st.contrast): after_step gets image_embedding from forward and from "
        "embed_image\n    hint: its author must name it in one of the two contracts"
    )


def test_a_module_without_the_method_is_refused() -> None:
    text = RECIPE.replace("{use: st.fit}", "{use: st.forgetful, needs: {teacher_tokens: image_tokens}}")
    with pytest.raises(PluginError) as caught:
        build_model(plan_of(text), seed=0)
    assert str(caught.value).startswith(
        "recipe.yaml:5:16 [MV302] model.decoders.fit (st.forgetful): its contract says what it gets after a step, "
        "and state_bundle:Distil has no method after_step"
    )


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raises", "after_step failed: ValueError: the queue is full"),
        ("lost", "after_step changed the buffer queue, which is not persistent: a resumed run lacks it"),
        ("shape", "after_step gave the buffer queue another shape, with which no checkpoint can be resumed"),
    ],
)
def test_what_a_module_does_wrong_is_said(fault: str, expected: str) -> None:
    with pytest.raises(PartFailed) as caught:
        Run.of(queued(f"fault: {fault}")).train(stop_after=1)
    assert f"[MV306] model.decoders.far (st.queue): {expected}" in str(caught.value)


def test_a_port_without_a_row_for_each_record_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(queued())
    pool: Any = run.model.parts["pool"]
    monkeypatch.setattr(pool, "forward", lambda image_tokens: torch.zeros(5, 4, dtype=torch.float64))
    with pytest.raises(SpecError, match=r"in a batch of 2 there came pool.pooled \(5 rows\)"):
        run.model(run.images.batch([0, 1]))
