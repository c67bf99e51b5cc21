"""``medvlp bench train RECIPE``: the training loop against one written by hand, same modules. Imports torch when it runs."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp_core.cli.common import add_recipe_arguments, plan_or_complain

if TYPE_CHECKING:
    import torch

    from medvlp_core.train.benchmark import Result

FEWEST_STEPS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, how long, and how much overhead is too much."""
    add_recipe_arguments(parser)
    parser.add_argument("--steps", metavar="N", type=_steps, default=6, help="steps of a round, the first not counted (default: 6)")
    parser.add_argument("--rounds", metavar="N", type=_count, default=20, help="rounds of each loop, in turn (default: 20)")
    parser.add_argument("--device", metavar="D", help="torch device, e.g. cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument("--limit", metavar="P", type=float, help="exit with 1 if the overhead is more than P percent")
    parser.add_argument("--out", metavar="DIR", help="folder of the result, new or empty (default: runs/bench-train-DATE-TIME)")


def run(arguments: argparse.Namespace) -> int:
    """Check the recipe, check that both loops compute the same, measure, write. 1 for problems and for too much overhead."""
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    from medvlp_core.build import build_run
    from medvlp_core.device import autocast, choose_device
    from medvlp_core.kernels.machine import device_label, on_device
    from medvlp_core.train.benchmark import run_benchmark
    from medvlp_core.train.run import check_run_folder, make_run_folder

    check_run_folder(arguments.out)
    device = choose_device(arguments.device)
    autocast(device, plan.train.precision)
    built = build_run(plan, seed=plan.train.seed)
    batch, workers = plan.train.batch_size, plan.train.workers
    print(f"{plan.name} on {device_label(device)}: {plan.train.precision}, {batch} pairs a step, {workers} loader processes")
    with on_device(device):
        result = run_benchmark(
            built, device, steps=arguments.steps, rounds=arguments.rounds, say=lambda text: print(text, flush=True)
        )
    print("\n".join(lines_of(result)))
    folder = make_run_folder(arguments.out, "bench-train")
    write(folder, result, command_line(arguments), device)
    print(f"written to {folder}: train.json, rival.py")
    overhead = result.timings[0].overhead.median * 100
    if arguments.limit is not None and overhead > arguments.limit:
        print(f"the overhead of {overhead:.1f} % is above the limit of {arguments.limit:g} %")
        return 1
    return 0


def lines_of(result: Result) -> list[str]:
    """The result in words, a block for each setting."""
    lines = []
    for timing in result.timings:
        lines += ["", "with torch.compile" if timing.is_compiled else "without torch.compile"]
        for name, laps in (("medvlp", timing.ours), ("by hand", timing.rival)):
            speeds = timing.speeds(laps)
            seconds = sum(lap.seconds for lap in laps)
            median, low, high = speeds[len(speeds) // 2], speeds[len(speeds) // 4], speeds[len(speeds) * 3 // 4]
            waiting = sum(lap.waiting for lap in laps) / seconds
            lines.append(f"  {name:<8} {median:8.1f} images/s (quartiles {low:.1f} to {high:.1f}), waiting for data {waiting:.1%}")
        for name, one in (("overhead", timing.overhead), ("overhead, CPU time of this process", timing.cpu_overhead)):
            lines.append(f"  {name}: {one.median:+.1%} (95 % interval {one.low:+.1%} to {one.high:+.1%})")
        rate = result.flops_per_pair * timing.speeds(timing.ours)[len(timing.ours) // 2]
        shares = [f"{rate / result.matmul_flops:.1%} of a large matrix product on this device"]
        if result.data_sheet_flops is not None:
            shares.append(f"{rate / result.data_sheet_flops:.1%} of the data sheet (MFU)")
        lines.append(f"  {rate / 1e9:,.1f} GFLOP/s of the model: {', '.join(shares)}")
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


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _steps(text: str) -> int:
    if int(text) < FEWEST_STEPS:
        raise argparse.ArgumentTypeError(f"{text} is less than {FEWEST_STEPS}: the first step of a round is not counted")
    return int(text)
