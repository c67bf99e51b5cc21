"""The README of an export: what it is, how it is loaded, what it expects, what it was trained on."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from medvlp_core.describe.wording import yaml_value
from medvlp_core.export import KINDS
from medvlp_core.planning.plan import plain
from medvlp_core.spec.roles import Role
from medvlp_core.training.checkpoint import LoadedRun

#: Parameters that name somebody else's weights.
_ORIGINS = ("model", "pretrained")


def model_card(loaded: LoadedRun, kind: str, usage: str) -> str:
    """The whole page."""
    return "\n".join(_lines(loaded, kind, usage)) + "\n"


def _lines(loaded: LoadedRun, kind: str, usage: str) -> Iterator[str]:
    plan, metadata = loaded.plan, loaded.metadata
    versions = ", ".join(f"{name} {version}" for name, version in metadata["machine"]["versions"].items())
    yield f"# A model of medvlp, exported for {kind}"
    yield ""
    yield f"What this is: {KINDS[kind]}. Trained for {metadata['step']} steps ({versions})."
    yield ""
    yield "```python"
    yield usage
    yield "```"
    yield ""
    yield "## Parts"
    yield ""
    for component in plan.components.values():
        if component.path.startswith("model."):
            yield f"* `{component.path}`: {component.name}"
    if kind != "transformers":
        yield from _images(loaded)
    yield from _origins(loaded)


def _images(loaded: LoadedRun) -> Iterator[str]:
    inputs, geometry = loaded.plan.inputs, loaded.image_transform().geometry
    channels = "one gray channel" if geometry.channels == 1 else f"the gray channel {geometry.channels} times"
    yield ""
    yield "## Images"
    yield ""
    yield f"* size: {geometry.height} x {geometry.width} pixels (height x width): the largest centred crop, scaled with antialias"
    yield f"* channels: {channels}; colour becomes luma"
    yield f"* values: `(x - {inputs.mean}) / {inputs.std}` with gray values `x` in 0..1"


def _origins(loaded: LoadedRun) -> Iterator[str]:
    plan = loaded.plan
    yield ""
    yield "## Data and licences"
    yield ""
    data = plan.one(Role.DATA)
    if data is not None:
        yield f"Data: `{data.name}`, fingerprint `{loaded.metadata.get('data')}`. {(inspect.getdoc(type(data.spec)) or '').strip()}"
        about = getattr(type(data.spec), "about", None)
        if about is not None:
            yield f"\n```text\n{about().strip()}\n```"
    yield ""
    found = [
        f"* `{component.path}.{name}`: {yaml_value(value)}"
        for component in plan.components.values()
        if component.path.startswith("model.")
        for name, value in plain(component.spec).items()
        if name in _ORIGINS and value is not None
    ]
    if plan.init_from.path is not None:
        found.append("* `init_from`: weights of an earlier model")
    if found:
        yield "Architectures and weights that it is built on, with licences of their own:"
        yield ""
        yield from found
        yield ""
    yield "The licences of the data and of those weights bind whoever uses or shares this model. Not for diagnosis."
