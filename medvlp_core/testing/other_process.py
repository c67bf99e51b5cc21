"""Asks another process the same question: its strings have other hashes, so what hangs on the order of a set comes out.

One helper process serves a whole test run, for importing torch takes seconds. A question is a line of JSON on its standard input,
the answer one on its standard output.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.parameters import read_block
from medvlp_core.planning.plan import plain
from medvlp_core.plugins.import_string import load_object
from medvlp_core.recipe.load import dump_yaml, parse_yaml
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.testing.checks import CheckFailed
from medvlp_core.testing.subject import Example


def fingerprint(source: Any, texts: list[str]) -> Any:
    """The fingerprint of a data source."""
    return source.fingerprint()


def ids_after_fit(tokenizer: Any, texts: list[str]) -> Any:
    """Token ids of the texts that a tokenizer learned from."""
    tokenizer.fit(texts)
    return tokenizer.encode(texts).token_ids.tolist()


#: What can be asked: a function of the built object and some texts, with an answer that JSON can hold.
QUESTIONS: dict[str, Callable[[Any, list[str]], Any]] = {one.__name__: one for one in (fingerprint, ids_after_fit)}


def ask_other_process(question: str, example: Example, texts: list[str] | None = None) -> Any:
    """The answer of another process about an example that it builds for itself.

    Raises:
        CheckFailed: it could not build the example or answer.
    """
    kind = type(example.spec)
    asked = {
        "question": question,
        "module": kind.__module__,
        "spec": kind.__qualname__,
        "parameters": dump_yaml(plain(example.spec)),
        "dims": dict(example.dims),
        "texts": texts or [],
    }
    helper = _helper(tuple(sys.path))
    assert helper.stdin is not None
    assert helper.stdout is not None
    try:
        helper.stdin.write(json.dumps(asked) + "\n")
        helper.stdin.flush()
        line = helper.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        _helper.cache_clear()
        raise CheckFailed(f"{example}: building it ended another process")
    answer = json.loads(line)
    if "error" in answer:
        raise CheckFailed(f"{example}: in another process: {answer['error']}")
    return answer["found"]


@functools.cache
def _helper(path: tuple[str, ...]) -> subprocess.Popen[str]:
    """The process. It ends when this one closes the pipe."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in path if part), "PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "medvlp_core.testing.other_process"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        spec = _spec(asked)
        built = load_object(type(spec).declaration.build, owner=asked["spec"])(spec, asked["dims"])
        return {"found": QUESTIONS[asked["question"]](built, asked["texts"])}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _spec(asked: dict[str, Any]) -> ComponentSpec:
    diagnostics = Diagnostics()
    node = parse_yaml(asked["parameters"], file="example.yaml", diagnostics=diagnostics)
    assert node is not None
    spec = read_block(
        load_object(f"{asked['module']}:{asked['spec']}", owner=asked["spec"]), node, path="", diagnostics=diagnostics
    )
    diagnostics.raise_errors()
    assert spec is not None
    found: ComponentSpec = spec
    return found


def main() -> None:
    """Answer until the input ends."""
    answers = sys.stdout
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is no answer
            answer = _answer(json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
