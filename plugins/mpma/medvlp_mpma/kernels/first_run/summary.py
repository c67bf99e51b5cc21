"""summary.md of a first run: the goals and whether they are met, what is wrong, what dispatch should do otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from medvlp_core.kernels import Call
from medvlp_core.kernels import benchmark_report as report
from medvlp_core.kernels.timing import Row, geometric_mean
from medvlp_mpma.kernels.first_run.run import Run
from medvlp_mpma.kernels.first_run.setting import KERNELS, REHEARSE, TIMED
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import tuning as attention_tuning
from medvlp_mpma.kernels.memory_topk import benchmark as topk


def verdict(is_met: bool | None) -> str:
    """In words; a rehearsal meets nothing."""
    return "not measured" if is_met is None else "rehearsal" if REHEARSE else "met" if is_met else "NOT MET"


def goals(run: Run) -> Iterator[tuple[str, str, bool | None]]:
    """Goal, what was measured, and whether it is met (None: not measured)."""
    worst: dict[str, float] = {}
    for row in run.checks:
        if row["backend"] == "triton" and row["error"]:
            worst[row["dtype"]] = max(worst.get(row["dtype"], 0.0), float(row["error"]))
    ours = [row for row in run.checks if row["backend"] == "triton"]
    is_complete = bool(ours) and not run.found.get("not_checked") and all(row["verdict"] != "not checked" for row in ours)
    same = [row for row in ours if row["tensor"] == "same bits twice"]
    is_right = all(row["verdict"] != "red" for row in ours)
    yield (
        "correctness of `triton`: fp32 < 1e-4, fp16 < 2e-3, bf16 < 1e-2, output and gradients against float64",
        ", ".join(f"{dtype} {error:.1e}" for dtype, error in worst.items()),
        is_right if is_complete or not is_right else None,
    )
    are_same = all(row["verdict"] == "green" for row in same)
    yield "gradients of `triton` bitwise repeatable", f"{len(same)} calls", are_same if same else None
    for direction, least in (("forward", 1.8), ("both", 1.3)):
        mean = mean_ratio(run.rows(attention.NAME, "triton", direction))
        shown, is_met = ("", None) if mean is None else (f"{mean:.2f}x", mean >= least)
        yield f"{report.TITLES[direction]}, A to F, >= {least} times cat + SDPA, geometric mean", shown, is_met
    lost = [line for line, must_change in dispatch_lines(run) if must_change]
    picked = run.rows(attention.NAME, "triton", "both") | run.rows(topk.NAME, "triton", "both")
    goal = "never slower than the best rival where dispatch takes `triton`, forward + backward"
    yield goal, f"slower at {len(lost)} shapes" if picked else "", not lost if picked else None
    for direction, share in (("forward", 0.35), ("backward", 0.20)):
        found = {k: one.share_of_floor for k, one in run.rows(attention.NAME, "triton", direction).items() if k in "BCDE"}
        shown = ", ".join(f"{letter} {100 * value:.0f} %" for letter, value in found.items())
        is_met = min(found.values()) >= share if len(found) == 4 else None
        yield f"share of the floor, B to E, {direction} >= {100 * share:.0f} %", shown, is_met
    of_g = run.rows(topk.NAME, "triton", "both").get("G")
    ratio, saved = (of_g.ratio, of_g.saved_bytes) if of_g else (None, None)
    shown = "" if ratio is None else f"{ratio:.2f}x, {report.megabytes(saved)} MB saved"
    is_met = None if ratio is None or saved is None else ratio >= 2.0 and saved <= 1e9
    yield "G at batch 256: >= 2 times masked-dense, forward + backward, and <= 1 GB saved", shown, is_met
    yield "saved for backward: nothing beyond out, lse and threshold", *saved_memory(run)
    host = run.found.get("host_microseconds")
    extra = None if host is None else host["op"] - host["launch"]
    shown = "" if host is None else f"{host['op']:.1f} us a call, of which the launch {host['launch']:.1f}"
    yield "host: <= 15 us a call for the op around the launch", shown, None if extra is None else extra <= 15.0


def mean_ratio(rows: dict[str, Row]) -> float | None:
    """The geometric mean over A to F, if all were measured."""
    return geometric_mean(list(rows.values())) if set(rows) == set("ABCDEF") else None


def saved_memory(run: Run) -> tuple[str, bool | None]:
    """How much more is saved than out, lse and threshold, and whether that is nothing."""
    more = {}
    for op in (attention.NAME, topk.NAME):
        for letter, row in run.rows(op, "triton", "both").items():
            rows = row.shape["B"] * row.shape["L"] * row.shape["H"]
            most = rows * (row.shape["D"] * TIMED.itemsize + 4 + (4 if "K" in row.shape.sizes else 0))
            more[letter] = (row.saved_bytes or 0) - most
    text = ", ".join(f"{letter} {report.megabytes(count)} MB too many" for letter, count in more.items() if count > 0)
    return text or ("nothing" if more else ""), not text if more else None


def dispatch_lines(run: Run) -> Iterator[tuple[str, bool]]:
    """For each shape where `triton` is not the fastest, or not taken although it is: a line, and whether dispatch must change."""
    for outcome in run.outcomes:
        for shape in outcome.shapes:
            rows = [row for row in outcome.rows if row.shape == shape and row.direction == "both" and row.times and row.is_same_op]
            ours = next((row for row in rows if row.contender == "triton"), None)
            if ours is None:
                yield f"{shape.letter}: `triton` was not timed", False
                continue
            others = [row for row in rows if row.contender != "triton"]
            best = min(others, key=lambda row: row.quantile(0.5))
            gain = best.quantile(0.5) / ours.quantile(0.5)
            call = Call("cuda", "bfloat16", tuple({"S": 0, **shape.sizes}.items()))
            is_taken = KERNELS[outcome.benchmark.op].order(call)[0] == "triton"
            times = f"{report.milliseconds(ours.quantile(0.5))} ms, {best.contender} {report.milliseconds(best.quantile(0.5))} ms"
            if gain < 1.0:
                advice = "dispatch takes it: **dispatch must be changed**" if is_taken else "dispatch does not take it"
                yield f"{shape.letter}: `triton` is not the fastest ({times}, {gain:.2f}x); {advice}", is_taken
            elif not is_taken:
                yield f"{shape.letter}: `triton` is the fastest ({times}, {gain:.2f}x) and dispatch does not take it", False


def crossover_line(run: Run) -> str:
    """Up to how many keys our kernels are faster, forward + backward."""
    rows = [row for row in run.found.get("crossover", []) if row["direction"] == "both"]
    times = [(row["triton"], row["composite"]) for row in rows]
    wins = [isinstance(ours, float) and isinstance(other, float) and ours < other for ours, other in times]
    if not rows:
        return "not measured"
    until = next((index for index, is_win in enumerate(wins) if not is_win), len(wins))
    where = f"up to S={rows[until - 1]['S']}" if until else "nowhere"
    later = [str(row["S"]) for row, is_win in zip(rows[until:], wins[until:], strict=True) if is_win]
    again = f", and again at S={', '.join(later)}" if later else ""
    now = attention_tuning.TRITON_UP_TO_KEYS
    return f"`triton` is faster than `composite` {where}{again} of {[row['S'] for row in rows]} (TRITON_UP_TO_KEYS is {now})"


def write_summary(run: Run) -> None:
    """summary.md: goals first, then what each step found, then the benchmark's own summary."""
    title = "# REHEARSAL of the first GPU run: none of these numbers mean anything" if REHEARSE else "# First GPU run"
    table = [["goal", "measured", ""], *([goal, shown, verdict(is_met)] for goal, shown, is_met in goals(run))]
    steps = [["step", "result"], *([name, text] for name, text in run.steps.items())]
    parts = [title, f"    {run.command}", run.label, report.markdown_table(steps, is_text=True)]
    parts += ["## Goals", report.markdown_table(table, is_text=True)]
    reds = [f"- {row['op']} {row['backend']} {row['dtype']}, {row['case']}: {row['tensor']} {row['error']} {row['reason']}"
            for row in run.checks if row["verdict"] == "red"]  # fmt: skip
    changes = sorted({f"- {row['op']} {row['backend']} {row['dtype']}, {row['case']}: other bits in {row['reason']}"
                      for row in run.checks if row["verdict"] == "changes"})  # fmt: skip
    lines = [f"- {line}" for line, _ in dispatch_lines(run)]
    parts += ["## Wrong", "\n".join(reds) or "Nothing that was checked."]
    parts += ["## Not repeatable", "\n".join(changes) or "Nothing that was checked."]
    parts += [
        "## Dispatch (rehearsal: says nothing)" if REHEARSE else "## Dispatch",
        "\n".join(lines) or "Nothing speaks against it.",
        f"Keys: {crossover_line(run)}.",
    ]
    for name in ("old_and_new_tables", "model"):
        if rows := run.found.get(name):
            heads = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[str(row.get(head, "")) for head in heads] for row in rows]
            parts += [f"## {name.replace('_', ' ').capitalize()}", report.markdown_table([heads, *cells], is_text=True)]
    parts += [run.timing_text.replace("\n#", "\n##").replace("# Kernel", "## Kernel", 1)]
    (run.out / "summary.md").write_text("\n\n".join(parts).rstrip() + "\n", encoding="utf-8")
