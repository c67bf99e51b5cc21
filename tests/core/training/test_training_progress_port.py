"""The port ``progress``: how far training has come, for every call that needs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from state_bundle import RECIPE, Run, messages, plan_of

from medvlp_core.describe import forward_source
from medvlp_core.errors import DataError
from medvlp_core.spec.contract import Contract, TensorSpec


def watched(text: str, *, resumed: Path | None = None, stop_after: int | None = None) -> tuple[Run, list[float]]:
    """A run, and the progress that its head saw in every pass."""
    run, seen = Run.of(text, resumed=resumed), []
    run.model.decoders["fit"].register_forward_pre_hook(
        lambda module, given, named: seen.append(named["progress"].item()), with_kwargs=True
    )
    return run.train(stop_after=stop_after), seen


def test_a_spec_without_dimensions_can_be_written() -> None:
    assert TensorSpec.parse(":float") == TensorSpec(())
    assert TensorSpec.parse(":float?").is_optional
    assert str(TensorSpec.parse(":float")) == ":float"
    assert Contract(needs={"progress": ":float"}).symbols() == set()


def test_it_is_the_share_of_steps_that_are_done() -> None:
    _, seen = watched(RECIPE)
    assert seen == pytest.approx([step / 7 for step in range(7)])


def test_every_micro_batch_of_a_step_sees_the_same() -> None:
    _, seen = watched(RECIPE.replace("steps: 7", "steps: 4, gradient_accumulation_steps: 3"))
    assert seen == [step / 4 for step in range(4) for _ in range(3)]


def test_a_resumed_run_continues_where_it_was(tmp_path: Path) -> None:
    stopped, seen = watched(RECIPE, stop_after=3)
    _, rest = watched(RECIPE, resumed=stopped.save(tmp_path / "checkpoints" / "step"))
    assert len(seen) == 3
    assert seen + rest == watched(RECIPE)[1]


def test_it_is_one_wherever_nobody_trains() -> None:
    run = Run.of(RECIPE)
    batch = run.images.batch([0, 1])
    assert run.model(batch).ports["fit.seen"] == 1
    assert run.model.ports({"image": batch["image"]}, "fit.seen")["fit.seen"] == 1
    assert run.model.ports({**batch, "progress": torch.tensor(0.25)}, "fit.seen")["fit.seen"] == 0.25
    run.model.encode_image(batch["image"])


def test_something_else_than_a_scalar_is_refused() -> None:
    run = Run.of(RECIPE)
    with pytest.raises(DataError, match=r"\[MV505\] progress must be a float of shape \(\), found float32 of shape \(2,\)"):
        run.model({**run.images.batch([0, 1]), "progress": torch.zeros(2)})
    with pytest.raises(DataError, match="found int64 of shape"):
        run.model({**run.images.batch([0, 1]), "progress": torch.tensor(1)})


def test_a_need_of_another_shape_is_refused_at_check_time() -> None:
    # an argument that is re-pointed: `image_tokens` has three dimensions
    text = RECIPE.replace("{use: st.fit}", "{use: st.fit, needs: {image_tokens: progress}}")
    assert messages(text) == (
        "recipe.yaml:5:16 [MV202] model.decoders.fit (st.fit): "
        "progress is B S D here, and :float from inputs: 3 against 0 dimensions"
    )


def test_the_written_out_pass_takes_it_from_the_batch() -> None:
    plan = plan_of(RECIPE)
    assert 'progress=batch["progress"]' in forward_source(plan)
