"""``medvlp export RUN --to KIND --out FOLDER``: a trained model for timm, transformers, onnxruntime and others. Needs torch."""

from __future__ import annotations

import argparse

from medvlp_core.export import KINDS


def configure(parser: argparse.ArgumentParser) -> None:
    """The run, the kind and the new folder."""
    parser.add_argument("run", metavar="RUN", help="run folder (its newest checkpoint) or one checkpoint's folder")
    kinds = "; ".join(f"{kind} = {text}" for kind, text in KINDS.items())
    parser.add_argument("--to", choices=KINDS, required=True, help=kinds)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where to write: a new or empty folder")


def run(arguments: argparse.Namespace) -> int:
    """Write the files, and print what loads them."""
    from medvlp_core.export.write import export_run

    done = export_run(arguments.run, arguments.to, arguments.out)
    print(f"written to {done.folder}: {', '.join(done.files)}")
    if arguments.to != "safetensors":
        print("loaded again and compared: it gives the model's features")
    print()
    print(done.usage_from_here)
    return 0
