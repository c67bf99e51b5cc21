"""What a batch may hold: the fields of records, the ports that each gives, and what a route needs of them. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from medvlp_core.errors import Diagnostics, did_you_mean
from medvlp_core.planning.components import SLOT_NAME
from medvlp_core.planning.wiring import (
    BATCH,
    INPUT_PORTS,
    INPUTS,
    TEXT_LENGTH,
    Call,
    PlannedComponent,
    PortKey,
    Provider,
    Wiring,
)
from medvlp_core.recipe.load import Node
from medvlp_core.spec.blocks import InputSpec
from medvlp_core.spec.contract import CLEAN, Axis, Dim, Symbol, TensorSpec
from medvlp_core.spec.fields import Field, field_faults
from medvlp_core.spec.roles import Role

#: What every record may have.
BUILT_IN = {"image": Field("B C H W", kind="image"), "text": Field("B L", kind="text")}
#: The crop of the image: left, top, right, bottom in pixels of the original image, and 1 if it is mirrored.
CROP = "crop"
#: The labels of a record that ``inputs.labels`` names, as a vector.
LABELS = "labels"
#: Names that a batch has for something else.
TAKEN = ("image_target", CROP, "record_index", "token_ids", "word_ids", "token_spans")


@attrs.frozen(kw_only=True)
class InputPlan:
    """What batches hold for some calls: which fields are read, the ports that they give, and their solved sizes.

    ``fields`` are those that are read, and what they lie on; ``sizes`` are the numbers of a field's symbols. ``may_lack`` maps
    fields that a record may be without to the image field whose picture stands in, or None. ``views`` are further views of a
    record, each with the fields that it cuts anew.
    """

    fields: dict[str, Field]
    ports: frozenset[str]
    sizes: dict[str, dict[str, int]]
    target: tuple[int, int] | None = None
    may_lack: dict[str, str | None] = attrs.field(factory=dict)
    views: dict[str, tuple[str, ...]] = attrs.field(factory=dict)

    def has(self, port: str) -> bool:
        """Whether somebody takes a port, in any view."""
        return any(PortKey.parse(one).port == port for one in self.ports)


def register_fields(wiring: Wiring, inputs: InputSpec | None, recipe: Node, diagnostics: Diagnostics) -> None:
    """Enter what batches hold: images, what the tokenizer makes of texts is its own, and the fields of the data component."""
    source = next((one for one in wiring.components.values() if one.role is Role.DATA), None)
    declared = _declared(source, diagnostics) if source is not None else {}
    wiring.fields |= {**BUILT_IN, **declared}
    if inputs is not None and inputs.labels:
        if LABELS in declared:
            at = (recipe.get("inputs.labels") or recipe).position
            text = f"inputs.labels: {source.label if source else 'the data component'} has a field `labels` of its own"
            diagnostics.add("MV209", text, at=at, hint="take inputs.labels out")
        wiring.fields[LABELS] = Field(f"B {len(inputs.labels)}", kind="vector")
    lacks = _may_lack(wiring, inputs, recipe, diagnostics) if inputs is not None else {}
    wiring.may_lack |= lacks
    wiring.table.bind(Symbol(INPUTS, "B"), BATCH, INPUTS)
    for name, field in wiring.fields.items():
        if name == "text":
            continue  # the tokenizer gives its ports
        path = INPUTS if name == "image" or source is None else source.path
        ports = field.ports(name, dict.fromkeys(_solved_axes(field, wiring.fields), 0), may_lack=name in lacks)
        for port, (dims, dtype) in ports.items():
            spec = TensorSpec(_identified(wiring, path, name, field, dims), dtype, port=port)
            wiring.batch[PortKey(port)] = Provider(path, "", spec)
            wiring.field_ports[port] = name
    _register_views(wiring, inputs, recipe, diagnostics)
    if "text" in lacks:
        wiring.batch[PortKey("text_is_known")] = Provider(INPUTS, "", TensorSpec(("B",), "bool", port="text_is_known"))
        wiring.field_ports["text_is_known"] = "text"
    wiring.batch[PortKey("progress")] = Provider(INPUTS, "", attrs.evolve(INPUT_PORTS["progress"], port="progress"))
    if len(wiring.fields["image"].axes) == 3:
        target = attrs.evolve(INPUT_PORTS["image_target"], port="image_target")
        wiring.batch[PortKey("image_target")] = Provider(INPUTS, "", target)
        wiring.batch[PortKey(CROP)] = Provider(INPUTS, "", TensorSpec(("B", 5), port=CROP))
        wiring.field_ports |= {"image_target": "image", CROP: "image"}


def _register_views(wiring: Wiring, inputs: InputSpec | None, recipe: Node, diagnostics: Diagnostics) -> None:
    """A view of the inputs holds its fields, and what lies on them, once more: of the same sizes, cut otherwise."""
    for view, spec in (inputs.views or {} if inputs is not None else {}).items():
        at = (recipe.get(f"inputs.views.{view}") or recipe).position
        taken = [one.path for one in wiring.components.values() if one.opens == view]
        if view == CLEAN or taken or not SLOT_NAME.match(view):
            no_name = "a name is made of small letters, digits and underscores"
            who = f"{taken[0]} opens it" if taken else "it is the view of whole records" if view == CLEAN else no_name
            diagnostics.add("MV209", f"inputs.views: a view cannot be called {view!r}: {who}", at=at, hint="rename it")
            continue
        images = [name for name, field in wiring.fields.items() if field.kind == "image"]
        for name in spec.fields:
            if name not in images:
                hint = did_you_mean(name, images, what="image fields")
                diagnostics.add("MV104", f"inputs.views.{view}: the records have no image field {name!r}", at=at, hint=hint)
        for port, name in list(wiring.field_ports.items()):
            if (name in spec.fields or wiring.fields[name].on in spec.fields) and port != "image_target":
                wiring.batch[PortKey(port, view)] = attrs.evolve(wiring.batch[PortKey(port)], view=view)


def _declared(source: PlannedComponent, diagnostics: Diagnostics) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for contract in source.calls.values():
        if contract.gives:
            text = f"{source.label}: a data component gives no ports but fields, found gives={{{', '.join(contract.gives)}}}"
            hint = "declare Contract(fields={NAME: Field(DIMS, kind=...)})"
            diagnostics.add("MV302", text, at=source.position(), hint=hint)
        for name, field in contract.fields.items():
            if not isinstance(field, Field):
                text = f"{source.label}: the field {name!r} is {type(field).__name__}, expected Field"
                diagnostics.add("MV302", text, at=source.position())
            elif name in TAKEN or (name == "image") != (field.kind == "image" and name in BUILT_IN) or name == "text":
                text = f"{source.label}: a field of kind {field.kind} cannot be called {name!r}"
                hint = f"names that batches have already: {', '.join((*BUILT_IN, *TAKEN))}"
                diagnostics.add("MV302", text, at=source.position(), hint=hint)
            else:
                found[name] = field
    for fault in field_faults(found):
        diagnostics.add("MV302", f"{source.label}: {fault}", at=source.position())
    return found


def _may_lack(wiring: Wiring, inputs: InputSpec, recipe: Node, diagnostics: Diagnostics) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    images = [name for name, field in wiring.fields.items() if field.kind == "image"]
    for name, instead in (inputs.may_lack or {}).items():
        entry = recipe.get(f"inputs.may_lack.{name}") or recipe
        at = entry.key_position or entry.position
        if name not in wiring.fields:
            hint = did_you_mean(name, wiring.fields, what="fields")
            diagnostics.add("MV104", f"inputs.may_lack: the records have no field {name!r}", at=at, hint=hint)
        elif wiring.fields[name].kind == "image" and (instead not in images or instead == name):
            text = f"inputs.may_lack.{name}: an absent image is a copy of another one, found {instead!r}"
            others = [one for one in images if one != name]
            hint = f"write `{name}: {others[0]}`" if others else "the records have no other image"
            diagnostics.add("MV104", text, at=at, hint=hint)
        elif wiring.fields[name].kind != "image" and instead is not None:
            text = f"inputs.may_lack.{name}: only an image has another one in its place, found {instead!r}"
            diagnostics.add("MV104", text, at=at, hint=f"write `{name}: null`")
        else:
            found[name] = instead
    return found


def _solved_axes(field: Field, fields: Mapping[str, Field]) -> set[str]:
    """The symbols of a field that the model solves: pixels and channels. The others are ragged."""
    on = fields.get(field.on or "")
    axes: list[Dim] = [*field.pixel_axes(on)]
    if field.kind == "image":
        axes.append(field.axes[field.channel_axis])
    return {axis for axis in axes if isinstance(axis, str)}


def _identified(wiring: Wiring, path: str, name: str, field: Field, dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The dimensions of a port of a field, its ragged axes bound to themselves."""
    solved = _solved_axes(field, wiring.fields)
    found: list[Dim] = []
    for place, dim in enumerate(dims):
        if not isinstance(dim, str) or dim in solved:
            found.append(dim)
        elif dim == "B" and place == 0:
            wiring.table.bind(Symbol(path, "B"), BATCH, path)
            found.append(dim)
        elif field.kind == "text" and dim == field.axes[-1]:
            symbol = f"{name}_{TEXT_LENGTH}"
            wiring.table.bind(Symbol(path, symbol), Axis(f"the field {name}", _longest_text(wiring)), path)
            found.append(symbol)
        else:
            wiring.table.bind(Symbol(path, dim), Axis(f"{dim} of the field {name}"), path)
            found.append(dim)
    return tuple(found)


def _longest_text(wiring: Wiring) -> int | None:
    for component in wiring.components.values():
        if component.role is Role.TOKENIZER:
            for contract in component.calls.values():
                dims = next((spec.dims for spec in contract.gives.values() if spec.port == "token_ids"), ())
                return dims[1] if len(dims) > 1 and isinstance(dims[1], int) else None
    return None


# ------------------------------------------------------------------------------------------------------------ what is needed


def input_plan(wiring: Wiring, keys: Iterable[PortKey]) -> InputPlan:
    """What batches must hold, so that these ports of batches are there."""
    ports = {key for key in keys if key in wiring.batch and wiring.views[key.view].opener is None and key.name != "progress"}
    names = dict.fromkeys(_field_of(wiring, key.name) for key in sorted(ports))
    for name in [*names]:
        names |= dict.fromkeys(one for one in (wiring.fields[name].on, wiring.may_lack.get(name)) if one is not None)
    fields = {name: wiring.fields[name] for name in names}
    wanted = {key.name for key in ports}
    sizes = {name: _sizes(wiring, name, field) for name, field in fields.items()}
    for name, field in fields.items():
        if field.kind in ("map", "mask") and name not in wanted:  # only whether it is there matters: any size will do
            sizes[name] = {axis: 1 for axis in field.pixel_axes(fields.get(field.on or "")) if isinstance(axis, str)} | sizes[name]
    target = None
    if any(key.name == "image_target" for key in ports):
        height, width = (wiring.table.value(Symbol(INPUTS, axis)) for axis in ("Ht", "Wt"))
        target = (height, width) if height is not None and width is not None else None
    views: dict[str, tuple[str, ...]] = {}
    for key in sorted(ports):
        if key.view != CLEAN:
            views[key.view] = tuple(dict.fromkeys((*views.get(key.view, ()), _field_of(wiring, key.name))))
    return InputPlan(
        fields=fields,
        ports=frozenset(map(str, ports)),
        sizes=sizes,
        target=target,
        may_lack={name: instead for name, instead in wiring.may_lack.items() if name in fields},
        views=views,
    )


def _field_of(wiring: Wiring, port: str) -> str:
    return wiring.field_ports.get(port, "text")


def _sizes(wiring: Wiring, name: str, field: Field) -> dict[str, int]:
    path = INPUTS if name == "image" else next((key.path for port, key in wiring.batch.items() if port.port == name), INPUTS)
    found = {axis: wiring.table.size(Symbol(path, axis)) for axis in field.axes if isinstance(axis, str)}
    return {axis: size for axis, size in found.items() if isinstance(size, int)}


def check_absence(wiring: Wiring, calls: Iterable[Call], diagnostics: Diagnostics) -> None:
    """Every path from a field that may be absent to a loss must pass a call that is told where it is (MV211)."""
    for name in wiring.may_lack:
        known = f"{name}_is_known"
        carries = {key for key in wiring.batch if wiring.field_ports.get(key.port) == name and key.port != known}
        if name == "text":
            carries |= {key for key, one in wiring.batch.items() if one.path == "tokenizer"}
        for call in calls:
            taken = [key for _, key in call.takes if key in carries]
            if not taken or any(key.port == known for _, key in call.takes):
                continue
            component = wiring.components[call.path]
            carries |= {*call.gives}
            if component.calls[call.name].losses:
                text = (
                    f"{component.label} gets {wiring.short(taken[0])}, which comes from the field {name!r}, and records may lack it"
                )
                hint = f"something on the way must need {known}, or take {name} out of inputs.may_lack"
                diagnostics.add("MV211", text, at=component.position(), hint=hint)


def check_sizes_of_fields(wiring: Wiring, keys: Iterable[PortKey], diagnostics: Diagnostics) -> None:
    """A map or mask that is cut must be asked for in a size."""
    plan = input_plan(wiring, keys)
    for name, field in plan.fields.items():
        if name == "image" or field.kind not in ("image", "map", "mask"):
            continue
        solved = plan.sizes[name]
        missing = [
            axis for axis in field.pixel_axes(wiring.fields.get(field.on or "")) if isinstance(axis, str) and axis not in solved
        ]
        if missing:
            source = next(one for one in wiring.components.values() if one.role is Role.DATA)
            text = (
                f"{source.label}: nobody says to which size the field {name!r} ({field}) is to be cut: {missing[0]} has no number"
            )
            hint = "a component that needs it must ask for numbers, such as `B 14 14`, or for the sizes of another port"
            diagnostics.add("MV206", text, at=source.position(), hint=hint)
