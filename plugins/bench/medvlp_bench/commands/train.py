"""``medvlp bench train RECIPE``: the training loop against one written by hand, same modules. Imports torch when it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp_bench.commands.numbers import count
from medvlp_core.cli import add_recipe_arguments, plan_or_complain

if TYPE_CHECKING:
    import torch

    from medvlp_bench.rival.benchmark import Result, Timing
    from medvlp_bench.rival.laps import Overhead

FEWEST_STEPS = 3
FEWEST_FOR_QUARTILES = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, how long, and how much overhead is too much."""
    add_recipe_arguments(parser)
    parser.add_argument("--steps", metavar="N", type=_steps, default=6, help="steps of a round, the first not counted (default: 6)")
    parser.add_argument("--rounds", metavar="N", type=count, default=20, help="rounds of each loop, in turn (default: 20)")
    parser.add_argument("--device", metavar="D", help="torch device, e.g. cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument("--limit", metavar="P", type=float, help="exit with 1 if the overhead is more than P percent")
    parser.add_argument("--out", metavar="DIR", help="folder of the result, new or empty (default: runs/bench-train-DATE-TIME)")


def run(arguments: argparse.Namespace) -> int:
    """Check the recipe, check that both loops compute the same, measure, write. 1 for problems and for too much overhead."""
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    from medvlp_bench.rival.benchmark import run_benchmark
    from medvlp_core.kernels.machine import device_label, on_device
    from medvlp_core.model import build_run
    from medvlp_core.runtime import autocast, choose_device
    from medvlp_core.training import check_run_folder, make_run_folder

    check_run_folder(arguments.out)
    device = choose_device(arguments.device)
    autocast(device, plan.train.precision)
    built = build_run(plan, seed=plan.train.seed)
    batch, num_workers = plan.train.batch_size, plan.train.num_workers
    print(f"{plan.name} on {device_label(device)}: {plan.train.precision}, {batch} pairs a step, {num_workers} loader processes")
    with on_device(device):
        result = run_benchmark(
            built, device, steps=arguments.steps, rounds=arguments.rounds, say=lambda text: print(text, flush=True)
        )
    print("\n".join(lines_of(result)))
    folder = make_run_folder(arguments.out, "bench-train")
    write(folder, result, command_line(arguments), device)
    print(f"written to {folder}: train.json, rival.py")
    too_slow = [] if arguments.limit is None else above(arguments.limit, result.timings)
    print("\n".join(too_slow), end="\n" if too_slow else "")
    return 1 if too_slow else 0


def above(limit: float, timings: Sequence[Timing]) -> list[str]:
    """A line for each setting, compiled or not, whose overhead is more than ``limit`` percent."""
    return [
        f"{_setting(one)}: the overhead of {one.overhead.median * 100:.1f} % is above the limit of {limit:g} %"
        for one in timings
        if one.overhead.median * 100 > limit
    ]


def _setting(timing: Timing) -> str:
    return "with torch.compile" if timing.is_compiled else "without torch.compile"


def speed_lines(timing: Timing) -> list[str]:
    """The speeds of both loops and the overhead, in words."""
    lines = []
    for name, laps in (("medvlp", timing.ours), ("by hand", timing.rival)):
        speeds = timing.speeds(laps)
        seconds = sum(lap.seconds for lap in laps)
        what, low, high = "range", speeds[0], speeds[-1]
        if len(speeds) >= FEWEST_FOR_QUARTILES:
            what, (low, _, high) = "quartiles", statistics.quantiles(speeds, n=4, method="inclusive")
        median, data_seconds = statistics.median(speeds), sum(lap.data_seconds for lap in laps) / seconds
        lines.append(f"  {name:<8} {median:8.1f} images/s ({what} {low:.1f} to {high:.1f}), data time {data_seconds:.1%}")
    for name, one in (("overhead", timing.overhead), ("overhead, CPU time of this process", timing.cpu_overhead)):
        lines.append(f"  {name}: {one.median:+.1%} ({_interval(one)})")
    return lines


def _interval(one: Overhead) -> str:
    what = "95 % interval" if one.confidence >= 0.95 else "too few rounds for an interval: range"
    return f"{what} {one.low:+.1%} to {one.high:+.1%}"


def masking_line(timing: Timing) -> str:
    """What it saves to encode visible patches only."""
    one = timing.masked_pass
    if one is None:
        return "  the image encoder sees whole images: no masking saves time"
    if not one.drops_masked:
        return f"  {one.masked_share:.0%} of the image are masked, which saves no time: its encoder computes masked cells too"
    masked, whole = one.seconds * 1e3, one.seconds_unmasked * 1e3
    return (
        f"  {one.masked_share:.0%} of the patches are masked: the image encoder takes {masked:,.1f} ms a step instead of "
        f"{whole:,.1f} ms, which saves {timing.saved_by_masking:.1%} of a step"
    )


def lines_of(result: Result) -> list[str]:
    """The result in words, a block for each setting."""
    lines = []
    for timing in result.timings:
        lines += ["", _setting(timing), *speed_lines(timing)]
        rate = result.flops_per_pair * statistics.median(timing.speeds(timing.ours))
        shares = [f"{rate / result.matmul_flops:.1%} of a large matrix product on this device"]
        if result.data_sheet_flops is not None:
            shares.append(f"{rate / result.data_sheet_flops:.1%} of the data sheet (MFU)")
        lines.append(f"  {rate / 1e9:,.1f} GFLOP/s of the model: {', '.join(shares)}")
        lines.append(masking_line(timing))
    return lines


def write(folder: Path, result: Result, command: str, device: torch.device) -> None:
    """``train.json`` with every round, and the rival as it was run."""
    import attrs
    import torch

    from medvlp_core.kernels.machine import device_label

    document: dict[str, Any] = {
        "command": command,
        "device": device_label(device),
        "torch": torch.__version__,
        **attrs.asdict(result),
    }
    source = document.pop("rival_source")
    for plain, timing in zip(document["timings"], result.timings, strict=True):
        plain["overhead"], plain["cpu_overhead"] = attrs.asdict(timing.overhead), attrs.asdict(timing.cpu_overhead)
    (folder / "train.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "rival.py").write_text(source, encoding="utf-8")


def command_line(arguments: argparse.Namespace) -> str:
    """The command as it could be typed again, without the folder."""
    words = ["medvlp", "bench", "train", arguments.recipe]
    words += [word for kind, text in arguments.overrides for word in (f"--{kind}", text)]
    words += ["--steps", str(arguments.steps), "--rounds", str(arguments.rounds)]
    return shlex.join([*words, *(["--device", arguments.device] if arguments.device else [])])


def _steps(text: str) -> int:
    if int(text) < FEWEST_STEPS:
        raise argparse.ArgumentTypeError(f"{text} is less than {FEWEST_STEPS}: the first step of a round is not counted")
    return int(text)
