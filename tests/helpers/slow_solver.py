"""Judges a recipe of random components by the rules of docs/ports.md, slowly and without any code of medvlp_core.planning.

It knows nothing of tables, caches or union-find: names are looked up by plain recursion, sizes by repeating all equations until
nothing changes.
"""

from __future__ import annotations

from typing import Any

BATCH = {
    "image": ("inputs", ("B", "C", "H", "W"), "float"),
    "image_target": ("inputs", ("B", "C", "Ht", "Wt"), "float"),
    "token_ids": ("tokenizer", ("B", "L"), "int"),
    "text_is_valid": ("tokenizer", ("B", "L"), "bool"),
    "word_ids": ("tokenizer", ("B", "L"), "int"),
}
#: What fields give, if the recipe's data component has them.
FIELDS = {
    "labels": {"labels": (("B", 3), "float"), "labels_is_known": (("B", 3), "bool")},
    "heat": {"heat": (("B", "Hh", "Wh"), "float"), "heat_is_known": (("B",), "bool")},
    "found": {"found": (("B", "K", 4), "float"), "found_is_valid": (("B", "K"), "bool"), "found_is_known": (("B",), "bool")},
}
FIXED = ("image_encoder", "text_encoder", "fusion")
TEXT_BOUND = 24


class Refused(Exception):
    """The recipe cannot run, and why."""


class Solver:
    """One recipe as plain data, and the contracts of its components."""

    def __init__(self, recipe: dict[str, Any], contracts: dict[str, dict[str, Any]]) -> None:
        self.slots: dict[str, dict[str, Any]] = {}
        self.batch = dict(BATCH)
        self.lacks = set(recipe.get("inputs", {}).get("may_lack", {}))
        if recipe["data"]["use"] in contracts:
            for field in contracts[recipe["data"]["use"]]["forward"].fields:
                ports = {port: ("data", *shape) for port, shape in FIELDS[field].items()}
                self.batch |= {port: one for port, one in ports.items() if field in self.lacks or not port.endswith("is_known")}
        model = recipe["model"]
        for block in ("masking", "image_encoder", "text_encoder", "fusion"):
            if block in model:
                self.slots[block] = {"kind": block, **model[block]}
        for block in ("maskings", "parts", "alignments", "decoders"):
            for slot, child in model.get(block, {}).items():
                self.slots[slot] = {"kind": block, **child}
        for slot in self.slots.values():
            source = slot.get("share") or slot.get("follow")
            slot["like"] = source.removeprefix("model.") if source else None
            own = self.slots[slot["like"]] if source else slot
            slot["calls"] = dict(contracts[own["use"]])
            if "text_encoder" in (slot["kind"], slot["like"]):
                slot["calls"]["fused"] = slot["calls"]["encode"]
        self.openers = {
            ("masked" if slot["kind"] == "masking" else name): name
            for name, slot in self.slots.items()
            if slot["kind"] in ("masking", "maskings")
        }
        self.visited: list[tuple[str, str, str]] = []
        #: The calls of a training step, as (slot, call, view).
        self.training: set[tuple[str, str, str]] = set()

    # ------------------------------------------------------------------------------------------------------------- who gives

    def parent(self, view: str) -> str | None:
        return None if view == "clean" else self.slots[self.openers[view]].get("of", "clean")

    def chain(self, view: str | None) -> list[str]:
        found = []
        while view is not None:
            if view in found or (view != "clean" and view not in self.openers):
                raise Refused(f"no view {view}")
            found.append(view)
            view = self.parent(view)
        return found

    def port(self, call: str, name: str, *, given: bool) -> str:
        if call == "fused":
            return f"fused_{name}" if given or name == "text_embeddings" else name
        return name

    def find(self, name: str, view: str, stack: tuple[Any, ...] = ()) -> tuple[str, str, str] | None:
        """(slot, port, view) of what a name means in a view; None if there is none."""
        slot, _, port = name.rpartition(".")
        for at in self.chain(view):
            if at == "clean" and port in self.batch and slot in ("", self.batch[port][0]):
                return self.batch[port][0], port, "clean"
            opener = self.openers.get(at)
            gives = self.slots[opener]["calls"]["forward"].gives.values() if opener else ()
            if opener and slot in ("", opener) and any(one.port == port for one in gives):
                return (opener, port, at) if self.runs(opener, "forward", at, stack) else None
        for is_fixed in (True, False):  # a fixed slot's port goes by the short name, whoever else gives one of that name
            found = []
            for other, block in self.slots.items():
                for call, contract in block["calls"].items():
                    ports = {self.port(call, one.port, given=True) for one in contract.gives.values()}
                    is_asked = slot in ("", other) and port in ports and (other in FIXED) == is_fixed
                    if is_asked and block["kind"] not in ("masking", "maskings"):
                        at = self.runs(other, call, view, stack)
                        found += [(other, port, at)] if at else []
            if len(found) > 1:
                raise Refused(f"{name} is given by several")
            if found:
                return found[0]
        return None

    def asked(self, slot: str, call: str, argument: str) -> tuple[str, str | None]:
        """The name of the port that an argument means, and the view that is named for it."""
        block = self.slots[slot]
        need = block["calls"][call].needs[argument]
        name, _, formal = block.get("needs", {}).get(argument, self.port(call, need.port, given=False)).partition("@")
        if argument not in block.get("needs", {}) and slot not in FIXED:
            for other, contract in block["calls"].items():  # what another call of it gives comes first
                gives = {self.port(other, one.port, given=True) for one in contract.gives.values()}
                needs = {self.port(other, one.port, given=False) for one in contract.needs.values()}
                name = f"{slot}.{name}" if name in gives - needs else name
        view = block.get("views", {}).get(formal or need.view, formal or need.view)
        if view == "masked" and "masked" not in self.openers and len(self.openers) == 1:
            view = next(iter(self.openers))
        return name, view

    def source(self, slot: str, call: str, argument: str, view: str, stack: tuple[Any, ...]) -> tuple[str, str, str] | None:
        name, named = self.asked(slot, call, argument)
        if named and named != "clean" and named not in self.openers:
            return None
        return self.find(name, named or view, stack)

    def leaks(self, slot: str, call: str, argument: str, key: tuple[str, str, str]) -> bool:
        """Whether tokens of a view with masked patches are asked for, and an image encoder gives those of the whole image."""
        named = self.asked(slot, call, argument)[1]
        if not named or key[0] not in self.slots or "image_encoder" not in (self.slots[key[0]]["kind"], self.slots[key[0]]["like"]):
            return False
        chain = self.chain(named)
        openers = [self.openers[view] for view in chain[: chain.index(key[2])]]
        gives = [one.port for opener in openers for one in self.slots[opener]["calls"]["forward"].gives.values()]
        return "image_is_masked" in gives

    def losses(self, slot: str, call: str) -> bool:
        return bool(self.slots[slot]["calls"][call].losses) and "follow" not in self.slots[slot]

    def view_of_needs(self, slot: str, call: str, view: str) -> str:
        if self.slots[slot]["kind"] in ("masking", "maskings"):
            return self.slots[slot].get("of", "clean")
        return "clean" if self.losses(slot, call) else view

    def runs(self, slot: str, call: str, view: str, stack: tuple[Any, ...] = ()) -> str | None:
        """In which view the result of a call is found for a view; None if nobody can feed it."""
        is_masking = self.slots[slot]["kind"] in ("masking", "maskings")
        if is_masking:
            view = next(name for name, opener in self.openers.items() if opener == slot)
        elif self.losses(slot, call):
            view = "clean"
        at = self.view_of_needs(slot, call, view)
        if (slot, call, view) in stack:
            raise Refused(f"{slot}.{call} waits for itself")
        stack = (*stack, (slot, call, view))
        found = []
        for argument, need in self.slots[slot]["calls"][call].needs.items():
            source = self.source(slot, call, argument, at, stack)
            if source is None and not need.is_optional:
                return None
            found += [source] if source else []
        if view != "clean" and not is_masking and all(one[2] != view for one in found):
            parent = self.parent(view)
            assert parent is not None
            return self.runs(slot, call, parent, stack[:-1])
        return view

    # ----------------------------------------------------------------------------------------------------------------- judging

    def judge(self) -> None:
        """Nothing if the recipe can run.

        Raises:
            Refused: it cannot.
        """
        for view in self.openers:
            self.chain(view)
        wanted = []
        for slot, block in self.slots.items():
            views = {call: self.runs(slot, call, "clean") for call in block["calls"]}
            lossy = [call for call in block["calls"] if self.losses(slot, call)]
            is_fed = any(self.runs(slot, call, at) for call in block["calls"] for at in ("clean", *self.openers))
            if any(views[call] is None for call in lossy) or not is_fed:
                raise Refused(f"{slot} cannot be fed")
            wanted += [(slot, call, view) for call, view in views.items() if view]
        if not any(self.losses(slot, call) for slot, block in self.slots.items() for call in block["calls"]):
            raise Refused("nothing to train")
        for one in wanted:
            if self.losses(*one[:2]):
                self.visit(*one)
        self.training = set(self.visited)
        self.look_for_what_is_absent()
        self.taken = {
            self.source(slot, call, argument, self.view_of_needs(slot, call, view), ())
            for slot, call, view in self.training
            for argument in self.slots[slot]["calls"][call].needs
        }
        for one in wanted:
            self.visit(*one)
        self.solve()

    def look_for_what_is_absent(self) -> None:
        """Nothing of a field that records may lack reaches a loss, unless something on the way knows where it is missing."""
        for field in self.lacks:
            reached = {("data", port, "clean") for port in FIELDS[field] if not port.endswith("is_known")}
            for _ in self.training:
                for slot, call, view in self.training:
                    at = self.view_of_needs(slot, call, view)
                    needs = self.slots[slot]["calls"][call].needs
                    sources = {self.source(slot, call, argument, at, ()) for argument in needs}
                    if not sources & reached or ("data", f"{field}_is_known", "clean") in sources:
                        continue
                    if self.losses(slot, call):
                        raise Refused(f"{slot} does not know where {field} is missing")
                    gives = self.slots[slot]["calls"][call].gives.values()
                    reached |= {(slot, self.port(call, one.port, given=True), view) for one in gives}

    def visit(self, slot: str, call: str, view: str) -> None:
        if (slot, call, view) in self.visited or slot in ("inputs", "tokenizer", "data"):
            return
        self.visited.append((slot, call, view))
        for argument in self.slots[slot]["calls"][call].needs:
            source = self.source(slot, call, argument, self.view_of_needs(slot, call, view), ())
            if source:
                giving = self.giving(source)
                if giving:
                    self.visit(source[0], giving[0], source[2])

    def giving(self, key: tuple[str, str, str]) -> tuple[str, Any] | None:
        """The call that gives a port, and what it declares of it there."""
        slot, port, view = key
        if slot not in self.slots:
            return None
        for call, contract in self.slots[slot]["calls"].items():
            specs = [one for one in contract.gives.values() if self.port(call, one.port, given=True) == port]
            if not specs or self.runs(slot, call, view) != view:
                continue
            at = self.view_of_needs(slot, call, view)
            filled = {argument for argument in contract.needs if self.source(slot, call, argument, at, ())}
            specs = [one for one in specs if one.when is None or one.when in filled]
            if specs:
                return call, next((one for one in specs if one.when), specs[0])
        return None

    def solve(self) -> None:
        """All equations between sizes, again and again."""
        equations: list[tuple[Any, Any]] = []
        sizes: list[tuple[Any, Any]] = []
        for slot, call, view in self.visited:
            block = self.slots[slot]
            for argument, need in block["calls"][call].needs.items():
                key = self.source(slot, call, argument, self.view_of_needs(slot, call, view), ())
                if key is None:
                    continue
                if self.leaks(slot, call, argument, key):
                    raise Refused(f"{argument} of {slot} is not masked")
                here = [dim if isinstance(dim, int) else (slot, call, view, dim) for dim in need.dims]
                dims, dtype, layout, there = self.declared(key)
                if dtype != need.dtype or len(dims) != len(here):
                    raise Refused(f"{argument} of {slot}")
                if layout and need.layout and layout != need.layout:
                    raise Refused(f"{argument} of {slot}")
                equations += zip(here, there, strict=True)
            names = {dim for contract in block["calls"].values() for dim in contract.sizes}
            own = {dim for one in self.specs(slot, call) for dim in one.dims if isinstance(dim, str)}
            sizes += [((block["like"] or slot, dim), (slot, call, view, dim)) for dim in sorted(names & own)]
        values: dict[Any, Any] = {}
        for provider, dims, _ in self.batch.values():
            for dim in dims:
                if dim in ("B", "L", "K"):
                    values[provider, "", "", dim] = {"B": "rows", "L": "words", "K": "boxes"}[dim]
        for _ in range(len(equations) + len(sizes) + 2):
            for a, b in equations:
                self.equate(values, a, b)
            for common, local in sizes:
                number = values.get(local)
                if number == "words":
                    self.equate(values, common, TEXT_BOUND)
                elif not isinstance(number, str):
                    self.equate(values, common, local)
        if ("data", "heat", "clean") in self.taken and ("data", "", "", "Hh") not in values:
            raise Refused("nobody says how large the heat map is")
        for slot, block in self.slots.items():
            for contract in block["calls"].values():
                named = {dim for one in (*contract.needs.values(), *contract.gives.values()) for dim in one.dims}
                for dim in contract.sizes:
                    if dim in named and block["like"] is None and (slot, dim) not in values:
                        raise Refused(f"{dim} of {slot} is not known")

    def specs(self, slot: str, call: str) -> list[Any]:
        contract = self.slots[slot]["calls"][call]
        return [*contract.needs.values(), *contract.gives.values()]

    def declared(self, key: tuple[str, str, str]) -> tuple[tuple[Any, ...], str, Any, list[Any]]:
        slot, port, view = key
        giving = self.giving(key)
        if giving is None:
            dims, dtype = self.batch[port][1:]
            return dims, dtype, None, [dim if isinstance(dim, int) else (slot, "", "", dim) for dim in dims]
        call, spec = giving
        dims = [dim if isinstance(dim, int) else (slot, call, view, dim) for dim in spec.dims]
        if spec.layout == "dropped":
            dims[1] = f"visible {key}"
        return spec.dims, spec.dtype, spec.layout, dims

    def equate(self, values: dict[Any, Any], a: Any, b: Any) -> None:
        x = values.get(a) if isinstance(a, tuple) else a
        y = values.get(b) if isinstance(b, tuple) else b
        if x is not None and y is not None and x != y:
            raise Refused(f"{a} is {x}, {b} is {y}")
        if x is not None and isinstance(b, tuple):
            values[b] = x
        if y is not None and isinstance(a, tuple):
            values[a] = y
