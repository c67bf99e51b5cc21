"""Random components and random recipes of them, for the property "whatever check accepts runs"."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import attrs

from medvlp_core.errors import Position
from medvlp_core.plugins.host import PluginHost, load_plugins
from medvlp_core.recipe.load import Node
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.fields import Field
from medvlp_core.spec.roles import Role
from medvlp_core.testing.stub_components import specs as stubs

AT = Position("random.yaml")
#: What a port looks like when everything is right. B and L are what a batch says; other sizes are numbers.
SHAPES: dict[str, tuple[tuple[Any, ...], str]] = {
    "image": (("B", 1, 8, 8), "float"),
    "token_ids": (("B", "L"), "int"),
    "text_is_valid": (("B", "L"), "bool"),
    "word_ids": (("B", "L"), "int"),
    "image_is_masked": (("B", 4), "bool"),
    "text_is_masked": (("B", "L"), "bool"),
    "image_tokens": (("B", 4, 6), "float"),
    "image_prefix": (("B", 1, 6), "float"),
    "text_embeddings": (("B", "L", 5), "float"),
    "text_tokens": (("B", "L", 5), "float"),
    "fused_text_embeddings": (("B", "L", 5), "float"),
    "fused_text_tokens": (("B", "L", 5), "float"),
    "fused_image_tokens": (("B", 4, 6), "float"),
    "image_embedding": (("B", 3), "float"),
    "text_embedding": (("B", 3), "float"),
    "pooled": (("B", 6), "float"),
    "region": (("B", 4, 6), "float"),
    "sentence": (("B", "L", 5), "float"),
    "score": (("B",), "float"),
    "guess": (("B", 3), "float"),
    "labels": (("B", 3), "float"),
    "labels_is_known": (("B", 3), "bool"),
    "heat": (("B", 4, 4), "float"),
    "heat_is_known": (("B",), "bool"),
    "found": (("B", "K", 4), "float"),
    "found_is_valid": (("B", "K"), "bool"),
    "found_is_known": (("B",), "bool"),
}
#: What records may have beside an image and a text.
FIELDS = {
    "labels": Field("B 3", kind="vector"),
    "heat": Field("B Hh Wh", kind="map", on="image"),
    "found": Field("B K 4", kind="boxes", on="image"),
}
FIELD_PORTS = ("labels", "heat", "found", "found_is_valid", "labels_is_known", "heat_is_known", "found_is_known")
MODEL = ("image_tokens", "image_prefix", "text_tokens", "text_embeddings", "fused_text_tokens", "fused_image_tokens")
OWN = ("pooled", "region", "sentence", "score", "guess", "image_embedding", "text_embedding")
BATCH = ("image", "token_ids", "text_is_valid", "word_ids")
MASKED = ("image_is_masked", "text_is_masked")
LETTERS = {1: "C", 3: "E", 4: "N", 5: "Dt", 6: "Di", 8: "H"}


@attrs.define
class World:
    """One random recipe while it is made, with the components that it uses: what they need is mostly there already."""

    rng: random.Random
    host: PluginHost
    #: How often something is wrong on purpose.
    fault: float
    #: What there is, as (full name, port).
    have: list[tuple[str, str]] = attrs.field(factory=lambda: [(port, port) for port in BATCH])
    views: list[str] = attrs.field(factory=lambda: ["clean"])
    #: Views and what their maskings give there.
    masked: dict[str, list[str]] = attrs.field(factory=dict)
    sizes: set[str] = attrs.field(factory=set)
    blocks: dict[str, Any] = attrs.field(factory=dict)
    #: Fields that records may lack.
    lacks: set[str] = attrs.field(factory=set)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def wrong(self) -> bool:
        return self.chance(self.fault)

    # ------------------------------------------------------------------------------------------------------------- contracts

    def need(self, port: str, *, view: str | None = None, is_optional: bool = False) -> TensorSpec:
        """A need of a port: numbers or symbols, now and then wrong."""
        dims, dtype = SHAPES[port]
        written: list[Any] = []
        for dim in dims:
            symbol = LETTERS.get(dim) if isinstance(dim, int) and port not in ("heat", "found") else None
            if symbol and self.chance(0.6):
                written.append(symbol)
                if symbol in ("Dt", "Di", "E") and self.chance(0.5):
                    self.sizes.add(symbol)
            else:
                written.append(dim)
        if port in ("image_tokens", "region", "fused_image_tokens") and self.chance(0.8):
            written[1] = "S"  # any number of tokens
        if self.wrong():
            kind = self.rng.choice(("rank", "size", "dtype"))
            written = written[:-1] if kind == "rank" and len(written) > 1 else [*written[:-1], 7] if kind == "size" else written
            dtype = "bool" if kind == "dtype" and dtype == "float" else dtype
        return TensorSpec(tuple(written), dtype, view=view, port=port, is_optional=is_optional)  # type: ignore[arg-type]

    def give(self, port: str, **more: Any) -> TensorSpec:
        """What a component gives: numbers, and the axes of the batch."""
        dims, dtype = SHAPES[port]
        return TensorSpec(dims, dtype, port=port, **more)  # type: ignore[arg-type]

    def choose(self, pool: Collection[str]) -> tuple[str, str] | None:
        """A port of the pool that is there, with its full name; seldom one that may not be."""
        there = [one for one in self.have if one[1] in pool]
        if self.wrong() or not there:
            port = self.rng.choice(sorted(pool))
            return (port, port) if self.wrong() or there else None
        return self.rng.choice(there)

    def needs(self, pool: Collection[str], count: int, block: dict[str, Any], *, viewed: float = 0.0) -> dict[str, TensorSpec]:
        """Random needs, and in the block of the recipe what fills them from elsewhere."""
        found: dict[str, TensorSpec] = {}
        for _ in range(count):
            chosen = self.choose(pool)
            if chosen is None or chosen[1] in found:
                continue
            full, port = chosen
            view = None
            if self.chance(viewed):
                view = self.rng.choice([*self.masked, "masked", "clean"]) if self.masked or self.wrong() else None
            elif port in MASKED and self.masked:
                view = self.rng.choice([name for name, gives in self.masked.items() if port in gives] or ["masked"])
            name = port if self.chance(0.8) else f"{port}_in"
            found[name] = self.need(port, view=view, is_optional=self.chance(0.12))
            if full != port or self.chance(0.05):
                view = f"@{self.rng.choice(self.views)}" if self.chance(0.2) else ""
                block.setdefault("needs", {})[name] = f"{full}{view}"
            elif view not in (None, "clean") and self.chance(0.2):
                block.setdefault("views", {})[view] = self.rng.choice([*self.masked, "clean"])
        return found

    def contract(
        self, pool: Collection[str], count: int, gives: list[str], block: dict[str, Any], *, viewed: float = 0.0, **more: Any
    ) -> Contract:
        """A random contract in which the sizes of what is given are known."""
        self.sizes = set()
        needs = self.needs(pool, count, block, viewed=viewed)
        for port in [one.port for one in needs.values()]:
            known = f"{port}_is_known"
            if port in self.lacks and known not in needs and self.chance(0.8):  # told what is missing, most of the time
                needs[known] = TensorSpec(SHAPES[known][0], "bool", port=known)
        named = {dim for one in needs.values() if not one.is_optional for dim in one.dims}
        if "B" not in named:
            needs["image"] = TensorSpec(("B", "C", "H", "W"), port="image")
        if any("L" in SHAPES[port][0] for port in gives) and "L" not in named:
            needs["text_is_valid"] = TensorSpec(("B", "L"), "bool", port="text_is_valid")
        block["needs"] = {name: port for name, port in block.get("needs", {}).items() if name in needs}
        used = {dim for one in needs.values() for dim in one.dims}
        given = {port: self.give(port) for port in gives}
        return Contract(needs=needs, gives=given, sizes=tuple(sorted(self.sizes & used)), **more)

    # ------------------------------------------------------------------------------------------------------------ components

    def add(self, slot: str, role: Role, contracts: dict[str, Contract], block: dict[str, Any]) -> dict[str, Any]:
        """Register a component, put it into the recipe, and note what it gives."""
        name = f"rnd.{role.value}_{len(self.blocks)}"
        build = f"random_modules:Random{''.join(word.title() for word in role.value.split('_'))}"
        self.host.components.add(_random_spec(name, role, build, contracts))
        self.blocks[slot] = {"use": name, **{key: value for key, value in block.items() if value}}
        self.note(slot, contracts)
        return self.blocks[slot]

    def note(self, slot: str, contracts: dict[str, Contract]) -> None:
        name = slot.rpartition(".")[2]
        is_fixed = name in ("image_encoder", "text_encoder", "fusion")
        for contract in contracts.values():
            for spec in contract.gives.values():
                port = str(spec.port)
                self.have.append((port if is_fixed else f"{name}.{port}", port))

    def image_encoder(self) -> None:
        extra = [self.rng.choice(("pooled", "region"))] if self.chance(0.3) else []
        drops = self.chance(0.6)
        tokens = self.give("image_tokens")
        dims = ("B", "Nv", 6) if drops else tokens.dims
        masked = attrs.evolve(tokens, dims=dims, layout="dropped" if drops else "replaced", when="image_is_masked")
        needs = {"image": TensorSpec(("B", 1, 8, 8), port="image")}
        if self.chance(0.9):
            needs["image_is_masked"] = self.need("image_is_masked", is_optional=True)
        else:
            masked = tokens
        gives = {"image_tokens": tokens, "image_prefix": self.give("image_prefix"), **{port: self.give(port) for port in extra}}
        self.add("image_encoder", Role.IMAGE_ENCODER, {"forward": Contract(needs=needs, gives={**gives, "seen": masked})}, {})

    def text_encoder(self) -> None:
        block: dict[str, Any] = {}
        embed = {"token_ids": self.need("token_ids")}
        encode = {name: self.need(name) for name in ("text_embeddings", "text_is_valid")}
        if self.chance(0.2):
            encode |= self.needs((*MODEL[:2], *OWN, "word_ids"), 1, block)
        gives = {"text_tokens": self.give("text_tokens")} | ({"sentence": self.give("sentence")} if self.chance(0.2) else {})
        calls = {
            "embed": Contract(needs=embed, gives={"text_embeddings": self.give("text_embeddings")}),
            "encode": Contract(needs=encode, gives=gives),
        }
        self.add("text_encoder", Role.TEXT_ENCODER, calls, block)

    def masking(self, slot: str, of: str) -> None:
        gives = self.rng.sample(("image_is_masked", "text_is_masked", "token_ids"), self.rng.randint(1, 3))
        gives += ["score"] if self.chance(0.2) else []
        block: dict[str, Any] = {"of": of} if of != "clean" else {}
        contract = self.contract((*BATCH, *MODEL[:3], "score"), self.rng.randint(1, 2), gives, block)
        view = "masked" if slot == "masking" else slot.rpartition(".")[2]
        self.add(slot, Role.MASKING, {"forward": contract}, block)
        self.have = [one for one in self.have if not one[0].startswith(f"{view}.") and not one[0].startswith("masking.")]
        self.views.append(view)
        self.masked[view] = gives
        self.have += [(port, port) for port in gives if port in (*MASKED, "score")]

    def fusion(self) -> None:
        block: dict[str, Any] = {}
        gives = [self.rng.choice(("fused_text_tokens", "fused_text_tokens", "fused_text_embeddings"))]
        source = "text_embeddings" if gives == ["fused_text_embeddings"] else "text_tokens"
        found = self.contract(("image_tokens", "image_prefix", *OWN[:2]), self.rng.randint(1, 2), gives, block)
        needs = {**found.needs, source: self.need(source)}
        sizes = tuple(sorted(self.sizes & {dim for one in needs.values() for dim in one.dims}))
        self.add("fusion", Role.FUSION, {"forward": attrs.evolve(found, needs=needs, sizes=sizes)}, block)
        if gives == ["fused_text_embeddings"]:
            self.have.append(("fused_text_tokens", "fused_text_tokens"))

    def data(self) -> dict[str, Any]:
        """A data component with some fields, and the block of inputs that says which of them records may lack."""
        fields = {name: field for name, field in FIELDS.items() if self.chance(0.4)}
        name = "rnd.data_0"
        build = "medvlp_core.testing.stub_components.data:Pairs"
        self.host.components.add(_random_spec(name, Role.DATA, build, {"forward": Contract(fields=fields)}))
        lacks = {field: None for field in fields if self.chance(0.25)}
        self.have += [(port, port) for port in fields]
        self.have += [("found_is_valid", "found_is_valid")] * ("found" in fields)
        self.have += [(f"{field}_is_known", f"{field}_is_known") for field in lacks]
        self.lacks = set(lacks)
        return {"data": {"use": name}, **({"inputs": {"may_lack": lacks}} if lacks else {})}

    def part(self, slot: str) -> None:
        block: dict[str, Any] = {}
        gives = self.rng.sample(OWN[:5], self.rng.randint(1, 2))
        contract = self.contract((*BATCH, *MODEL, *OWN, *FIELD_PORTS), self.rng.randint(1, 3), gives, block, viewed=0.1)
        self.add(slot, Role.PART, {"forward": contract}, block)

    def borrowed(self, slot: str, source: str, key: str) -> None:
        """A part that shares or follows an encoder."""
        block: dict[str, Any] = {key: f"model.{source}"} | ({"decay": 0.9} if key == "follow" else {})
        if source == "image_encoder" and self.chance(0.4):
            block["needs"] = {"image": f"image@{self.rng.choice(self.views)}"}
        self.blocks[slot] = block
        self.note(slot, self.host.components[self.blocks[source]["use"]].CALLS)  # type: ignore[attr-defined]

    def alignment(self, slot: str) -> None:
        block: dict[str, Any] = {}
        pool = (*MODEL[:4], *OWN, *BATCH[1:], *FIELD_PORTS)
        calls = {"forward": self.contract(pool, self.rng.randint(1, 3), [], block, viewed=0.3, losses=("one", "two"))}
        if self.chance(0.8):
            image = self.contract(("image_tokens", "image_prefix", "pooled"), 1, ["image_embedding"], block)
            text = self.contract(("text_tokens", "sentence"), 1, ["text_embedding"], block)
            calls |= {"embed_image": image, "embed_text": text}
        self.add(slot, Role.ALIGNMENT, calls, self._kept(block, calls))

    def decoder(self, slot: str) -> None:
        block: dict[str, Any] = {}
        gives = [self.rng.choice(("guess", "score"))]
        pool = (*MODEL, *OWN, *BATCH, *FIELD_PORTS, *(MASKED if self.masked else ()))
        contract = self.contract(pool, self.rng.randint(1, 3), gives, block, viewed=0.4, losses=("loss",))
        self.add(slot, Role.DECODER, {"forward": contract}, block)

    def _kept(self, block: dict[str, Any], calls: dict[str, Contract]) -> dict[str, Any]:
        arguments = {name for contract in calls.values() for name in contract.needs}
        return {**block, "needs": {name: port for name, port in block.get("needs", {}).items() if name in arguments}}


def random_recipe(rng: random.Random, host: PluginHost, *, fault: float = 0.02) -> dict[str, Any]:
    """A recipe as plain data, with components made for it and registered with the host (those of before are forgotten)."""
    components: Any = host.components
    for name in [name for name in components._specs if name.startswith("rnd.")]:
        del components._specs[name]
    world = World(rng, host, fault)
    data = world.data() if world.chance(0.5) else {"data": {"use": "kit.pairs"}}
    if not world.wrong():
        world.image_encoder()
    if not world.wrong():
        world.text_encoder()
    if world.chance(0.7):
        world.masking("masking", "clean")
    if world.chance(0.25):
        world.masking("maskings.second", world.rng.choice(world.views))
        if world.chance(0.4):
            world.masking("maskings.third", "nowhere" if world.wrong() else world.rng.choice(world.views))
    if world.chance(0.6):
        world.fusion()
    for number in range(rng.choice((0, 1, 1, 2, 3))):
        sources = [source for source in ("image_encoder", "text_encoder") if source in world.blocks]
        kind = rng.random()
        if kind < 0.5 and sources:
            world.borrowed(f"parts.part_{number}", rng.choice(sources), "share" if kind < 0.25 else "follow")
        else:
            world.part(f"parts.part_{number}")
    heads = [f"alignments.align_{number}" for number in range(rng.choice((0, 1, 1, 2)))]
    heads += [f"decoders.decode_{number}" for number in range(rng.choice((0, 1, 1, 2)))]
    for slot in heads:
        (world.alignment if slot.startswith("a") else world.decoder)(slot)
    model: dict[str, Any] = {}
    for slot, block in world.blocks.items():
        base, _, name = slot.partition(".")
        (model.setdefault(base, {}) if name else model)[name or base] = block
    return {
        "medvlp": 1,
        **data,
        "tokenizer": {"use": "kit.words"},
        "model": model,
        "train": {"steps": 1, "batch_size": 2},
    }


def stub_host() -> PluginHost:
    """A host with the stub data and tokenizer of the kit; random recipes bring the rest."""
    host = load_plugins()
    for kind in (stubs.PairsSpec, stubs.WordsSpec):
        if kind.declaration.name not in host.components:
            host.components.add(kind)
    return host


def _random_spec(name: str, role: Role, build: str, contracts: dict[str, Contract]) -> type[ComponentSpec]:
    @component(name, role=role, build=build)
    @attrs.frozen(kw_only=True)
    class RandomSpec(ComponentSpec):
        """Random."""

        note: str = param("", help="nothing")

        def calls(self) -> dict[str, Contract]:
            return contracts

        @classmethod
        def examples(cls) -> tuple[ComponentSpec, ...]:
            return (cls(), cls(note="x"))

    RandomSpec.CALLS = contracts  # type: ignore[attr-defined]
    return RandomSpec


def tree(value: Any) -> Node:
    """Plain data as the recipe's tree."""
    if isinstance(value, dict):
        return Node({key: tree(item) for key, item in value.items()}, AT, AT)
    if isinstance(value, list):
        return Node([tree(item) for item in value], AT, AT)
    return Node(value, AT, AT)
