"""Names of parameters in ``train.parameters`` and ``train.freeze``: do they begin with a part of this recipe? Light.

They are names as ``model.named_parameters()`` has them (``image_encoder.blocks.0.norm.weight``), with ``*`` for any text, dots
included, ``?`` for one character and ``[...]``. Which parameters there are is known once the model is built
(medvlp_core.model.freezing).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from medvlp_core.errors import Diagnostics, Position, did_you_mean, nearest
from medvlp_core.planning.wiring import PlannedComponent
from medvlp_core.recipe.load import Node
from medvlp_core.spec.blocks import TrainSpec


def name_positions(recipe: Node, train: TrainSpec) -> Iterable[tuple[str, str, Position]]:
    """Every name of ``train.parameters`` and ``train.freeze``: where it is used, the name, and its place in the recipe."""
    rules, frozen = recipe.get("train.parameters"), recipe.get("train.freeze")
    for name in train.parameters:
        node = rules.child(name) if rules is not None else None
        yield "train.parameters", name, (node.key_position or node.position) if node is not None else recipe.position
    for number, name in enumerate(train.freeze):
        node = frozen.child(str(number)) if frozen is not None else None
        yield "train.freeze", name, node.position if node is not None else recipe.position


def check_names(recipe: Node, train: TrainSpec, components: Mapping[str, PlannedComponent], diagnostics: Diagnostics) -> None:
    """Report names that can match no parameter of these components (MV102), or none that is trained anyway (MV104)."""
    modules = {path.removeprefix("model."): one for path, one in components.items() if one.role.info.is_module}
    owners = {name: one for name, one in modules.items() if one.shares is None}
    for where, name, at in name_positions(recipe, train):
        fixed = re.split(r"[*?\[]", name, maxsplit=1)[0]
        found = [slot for slot in owners if fixed.startswith(f"{slot}.") or (fixed != name and f"{slot}.".startswith(fixed))]
        sharing = next(
            (one for slot, one in modules.items() if one.shares and (fixed.startswith(f"{slot}.") or name == slot)), None
        )
        whole = [slot for slot in owners if slot == name or slot.startswith(f"{name}.")]
        if sharing is not None:
            text = f"{where}: {name!r} has no weights of its own, but those of {sharing.shares}"
            hint = f"write '{str(sharing.shares).removeprefix('model.')}.*'"
            diagnostics.add("MV104", text, at=at, hint=hint)
        elif not found and whole:
            text = f"{where}: {name!r} is a part of the model, and no parameter"
            diagnostics.add("MV102", text, at=at, hint=f"write '{name}.*' for all its parameters")
        elif not found:
            # the part that was meant is as long as the name's first words
            first = next((near for words in (2, 1) if (near := nearest(".".join(fixed.split(".")[:words]), owners))), None)
            hint = f"did you mean '{first}.*'? parts: {', '.join(owners)}" if first else did_you_mean(name, owners, what="parts")
            diagnostics.add("MV102", f"{where}: {name!r} begins with no part of this model", at=at, hint=hint)
        elif all(owners[slot].follows is not None for slot in found):
            text = f"{where}: {name!r} follows {owners[found[0]].follows}, so it is never trained by itself"
            diagnostics.add("MV104", text, at=at, hint="remove it: only its source is trained")
