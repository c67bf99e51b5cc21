"""Triton's interpreter without a third of its time: it patches its language again for every call of a function inside a kernel.

A launch of a kernel patches ``triton.language``, and what is called inside finds it patched: nothing is left to do there. A process
that has the folder ``at_startup`` on its ``PYTHONPATH`` does the same, and so do those that it starts.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any


def patch_language_once(interpreter: ModuleType) -> None:
    """Change the module ``triton.runtime.interpreter``, unless that was done before or the module is another one than we know."""
    patch, scope = (getattr(interpreter, name, None) for name in ("_patch_lang", "_LangPatchScope"))
    if patch is None or scope is None or patch.__name__ != "_patch_lang":
        return

    def patch_unless_patched(function: Any) -> Any:
        language: Any = interpreter.tl  # type: ignore[attr-defined]
        languages = [one for one in function.__globals__.values() if inspect.ismodule(one) and one in (language, language.core)]
        if languages and not any(language.core.is_builtin(one.load) for one in languages):
            return scope()
        return patch(function)

    interpreter._patch_lang = patch_unless_patched  # type: ignore[attr-defined]


def at_startup(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a process that does this when it imports Triton."""
    folders = [str(Path(__file__).parent / "at_startup"), str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
