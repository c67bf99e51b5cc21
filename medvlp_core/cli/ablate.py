"""``medvlp ablate RECIPE --over ...``: trains every combination with every seed and compares them. Planned first, without torch."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core.ablation.grid import AS_IN_RECIPE, Ablation, parse_axes, plan_ablation
from medvlp_core.ablation.results import check_metrics
from medvlp_core.cli.common import add_recipe_arguments, columns, print_problems
from medvlp_core.cli.folding import print_folded
from medvlp_core.errors import Diagnostics

if TYPE_CHECKING:
    from rich.console import Console

    from medvlp_core.ablation.comparison import Part
    from medvlp_core.ablation.results import Results


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, what varies, seeds, and where to write."""
    add_recipe_arguments(parser)
    over = "a path and its values, e.g. model.fusion=mpma.memory_fusion,standard.cross_attention; null removes a block, "
    over += f"{AS_IN_RECIPE} is what the recipe has; several --over make a grid"
    parser.add_argument("--over", metavar="PATH=V,V", action="append", required=True, help=over)
    parser.add_argument("--seeds", metavar="N,N", type=_seeds, help="seeds of every combination (default: the recipe's train.seed)")
    parser.add_argument("--out", metavar="FOLDER", help="new, or begun by the same command (default: runs/ablation-NAME-DATE-TIME)")
    parser.add_argument("--device", metavar="D", help="torch device, e.g. cpu or cuda:0 (default: the GPU if there is one)")
    shown = "metrics of the picture, by their names or those of evaluators (default: the first of each evaluator)"
    parser.add_argument("--metrics", metavar="NAME,NAME", type=_names, default=(), help=shown)
    parser.add_argument("--dry-run", action="store_true", help="plan everything and train nothing")


def run(arguments: argparse.Namespace) -> int:
    """Plan, train, compare. 1 if a combination is wrong, a run did not finish or an evaluator failed."""
    from medvlp_core.plugins.host import load_plugins
    from medvlp_core.recipe.load import parse_overrides

    diagnostics = Diagnostics()
    axes = parse_axes(arguments.over, diagnostics)
    overrides = parse_overrides(arguments.overrides, diagnostics)
    ablation = None
    if axes is not None:
        chosen = {"overrides": overrides, "seeds": arguments.seeds, "host": load_plugins()}
        ablation = plan_ablation(arguments.recipe, axes, **chosen, diagnostics=diagnostics)
    if ablation is not None:
        check_metrics(arguments.metrics, ablation, diagnostics)
    print_problems(diagnostics, sys.stderr)
    if ablation is None or diagnostics.has_errors:
        count = len(diagnostics.errors)
        print(f"{arguments.recipe}: {count} error{'' if count == 1 else 's'}, nothing was trained", file=sys.stderr)
        return 1
    if arguments.device is not None:
        from medvlp_core.runtime.device import choose_device  # imports torch, which takes a second

        choose_device(arguments.device)
    print_folded(plan_lines(ablation))
    if arguments.dry_run:
        return 0
    return _train_and_compare(ablation, arguments)


def _train_and_compare(ablation: Ablation, arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from medvlp_core.ablation.ablation_folder import done
    from medvlp_core.ablation.results import read_results
    from medvlp_core.ablation.run_all import open_ablation, run_all

    console = Console()
    folder = open_ablation(ablation, out=arguments.out, device=arguments.device)
    print(f"folder: {folder}")
    try:
        run_all(ablation, folder, device=arguments.device, console=console)
    except KeyboardInterrupt:
        text = (
            f"{len(done(folder, ablation))} of {len(ablation.runs())} runs are done; the same command with --out {folder} resumes"
        )
        print(f"\n{text}", file=sys.stderr)
        raise
    results = read_results(folder, ablation)
    print_results(results, console)
    complaints = results.complaints()
    for line in complaints:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
    if any(outcome.status == "failed" for outcome in results.outcomes.values()):
        print(f"the same command with --out {folder} tries the failed runs again", file=sys.stderr)
    names = write_tables(folder, results)
    names += write_picture(folder, results, arguments.metrics)
    print(f"{folder}: {', '.join(names)}")
    return 1 if complaints else 0


def plan_lines(ablation: Ablation) -> list[str]:
    """What would be trained: a line for each combination."""
    from medvlp_core.ablation.comparison import counted, summary

    rows = []
    for number, one in enumerate(ablation.combinations, start=1):
        plan = next(iter(one.plans.values()))
        steps, epochs = plan.train.steps, plan.train.epochs
        length = counted(steps, "step") if steps is not None else f"{epochs:g} epoch{'' if epochs == 1 else 's'}"
        parts = (len(plan.components), "component"), (len(plan.losses), "loss term"), (len(plan.calls), "call")
        size = ", ".join(counted(*part) for part in parts) + " a step"
        rows.append((str(number), one.label, f"{length}, {size}"))
    lines = [f"{ablation.name}: {summary(ablation)}", *columns(rows)]
    is_open = any(AS_IN_RECIPE in one.values.values() for one in ablation.combinations)
    return [*lines, *([f"  {AS_IN_RECIPE}: as the recipe has it"] if is_open else [])]


def print_results(results: Results, console: Console) -> None:
    """Print the table: as wide as the terminal on one, as plain text elsewhere."""
    from medvlp_core.ablation.comparison import legend, parts, plain_lines

    width = console.width if console.is_terminal else shutil.get_terminal_size((100_000, 24)).columns
    for part in parts(results, width=width):
        print()
        if console.is_terminal:
            _print_rich(part, console)
        else:
            print_folded([part.title, *plain_lines(part)])
    print()
    print_folded(legend(results))


def _print_rich(part: Part, console: Console) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from medvlp_core.ablation.comparison import wrapped_name

    table = Table(title=escape(part.title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, cell in enumerate(part.header):
        table.add_column(escape("\n".join(wrapped_name(cell))), justify="right" if number else "left", no_wrap=number > 0)
    for row in part.rows:
        table.add_row(*map(escape, row), style="dim" if row[0].startswith(" ") else "")
    console.print(table)


def write_tables(folder: Path, results: Results) -> list[str]:
    """Write ``table.md`` and ``table.csv``; their names."""
    from medvlp_core.ablation.comparison import write_csv, write_markdown

    write_markdown(folder / "table.md", results)
    write_csv(folder / "table.csv", results)
    return ["table.md", "table.csv"]


def write_picture(folder: Path, results: Results, names: Sequence[str]) -> list[str]:
    """Draw ``ablation.png``; its name. Without matplotlib, or without a number, there is none, and a line says so."""
    from medvlp_core.ablation.picture import draw_ablation
    from medvlp_core.ablation.results import choose_metrics

    if not results.values:
        print("ablation.png is skipped: no run gave a number", file=sys.stderr)
        return []
    metrics = choose_metrics(names, results)
    try:
        draw_ablation(folder / "ablation.png", results, metrics)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("ablation.png is skipped: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return []
    return ["ablation.png"]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"an empty name in {text!r}")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,1,2") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"seeds are at least 0, each given once, found {text}")
    return seeds
