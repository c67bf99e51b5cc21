"""The hooks that a plugin may implement. Light. Hooks register and observe; they are never in the forward path.

An entry point in the group ``medvlp.plugins`` names a torch-free module; its functions marked with :data:`hookimpl` are called.
An implementation may take any subset of a hook's arguments::

    # acme/plugin.py                                  [project.entry-points."medvlp.plugins"]
    from medvlp_core import hookimpl                          acme = "acme.plugin"

    MEDVLP_INTERFACE = 2

    @hookimpl
    def medvlp_register_components(registry):
        registry.add(GateSpec)

docs/hooks.md says for each hook when it is called, what is forbidden, and what happens when it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from medvlp_core.errors import Diagnostics
    from medvlp_core.planning.plan import ModelPlan
    from medvlp_core.plugins.registry import PluginComponents, PluginKernels

PROJECT = "medvlp"
ENTRY_POINT_GROUP = "medvlp.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# ------------------------------------------------------------------------------------------------------------- registration


@hookspec
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register component specs: ``registry.add(SpecClass)``. Names must start with the plugin's namespace and a dot.

    ``registry.retire(name, since=..., text=...)`` says what replaces a component that is gone.
    """


@hookspec
def medvlp_register_presets(register: Callable[[str, Path], None]) -> None:
    """Register recipes: ``register("base", path)`` makes ``extends: <namespace>:base`` work."""


@hookspec
def medvlp_register_kernels(registry: PluginKernels) -> None:
    """Register ops with several implementations: ``registry.add(KernelOp(name=..., summary=..., build="package.module:KERNEL"))``.

    Names must start with the plugin's namespace and a dot. What ``build`` names is imported when it is used, not here.
    """


# -------------------------------------------------------------------------------------------------------------- observation


@hookspec
def medvlp_check_plan(plan: ModelPlan, diagnostics: Diagnostics) -> None:
    """Look at a checked plan and add problems of your own to ``diagnostics``. Runs without torch."""


@hookspec
def medvlp_model_built(plan: ModelPlan, model: Any) -> None:
    """Called once after a model was built. Must not change its structure."""


@hookspec
def medvlp_train_event(event: Any) -> None:
    """Called for each event of the training loop (medvlp_core.training.events)."""


# ---------------------------------------------------------------------------------------------------------------- extension


@hookspec
def medvlp_add_commands(commands: Any) -> None:
    """Add subcommands to the ``medvlp`` command line: ``commands.add(name, help, configure, run)``."""
