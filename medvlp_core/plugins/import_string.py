"""Follows the import strings of declarations, ``package.module:Name``, when what they name is built and not before."""

from __future__ import annotations

import importlib
from typing import Any

from medvlp_core.errors import PluginError, Problem, describe_error


def load_object(build: str, *, owner: str, install: str = "") -> Any:
    """Import what ``package.module:Name`` names; done when ``owner`` (a component or kernel) is built, not before.

    ``install`` is the command that brings what it needs besides, the hint if that is missing.

    Raises:
        PluginError: MV303, with the import string and the reason.

    Example:
        >>> load_object("pathlib:Path", owner="acme.paths").__name__
        'Path'
    """
    module_name, _, attribute = build.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        missing = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else None
        is_foreign = missing is not None and missing != module_name.partition(".")[0]
        hint = f"install the package that brings the module {missing!r}" if is_foreign else None
        problem = Problem(
            code="MV303",
            text=f"{owner} cannot be built: importing {build!r} failed",
            details=(describe_error(error),),
            hint=install if install and isinstance(error, ImportError) else hint,
        )
        raise PluginError(problem) from error
