"""Pre-train a model composed from YAML (default: MPMA, small, on the radiographs that medvlp ships) and check what it learned."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbour core makes a step many times slower

CHANGES = {"set": "train.steps=100", "use": "model.fusion=standard.cross_attention", "unset": "model.alignments.gla"}


def main() -> None:
    """Parse, plan, train, report. Exits with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).with_name("configs") / "mpma_small.yaml"
    parser.add_argument("--config", default=str(default), help="a YAML file, or a preset such as mpma:base")
    for kind, example in CHANGES.items():  # one list for all three: they are applied in the order given
        option = parser.add_argument(f"--{kind}", dest="changes", action="append", default=[], help=f"e.g. --{kind} {example}")
        option.type, option.metavar = (lambda text, kind=kind: (kind, text)), "CHANGE"
    parser.add_argument("--out", help="run folder, new or empty (default: runs/NAME-DATE-TIME)")
    parser.add_argument("--resume", metavar="RUN", help="resume a run that was stopped or killed, as it began")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    arguments = parser.parse_args()
    import medvlp_core

    try:
        if arguments.resume is not None:
            result = medvlp_core.resume(arguments.resume, arguments.changes, device=arguments.device)
        else:
            plan = medvlp_core.plan(arguments.config, arguments.changes)
            sys.stderr.writelines(f"{warning}\n" for warning in plan.warnings)
            result = medvlp_core.pretrain(plan, out=arguments.out, device=arguments.device)
        sys.exit(1 if result is not None and result.problems else 0)
    except medvlp_core.MedvlpError as error:
        sys.exit(str(error))  # to stderr, without a traceback


if __name__ == "__main__":
    main()
