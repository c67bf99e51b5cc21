"""One component under test: its examples, built and called as a model would build and call them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medvlp_core.model.build import interface_of
from medvlp_core.planning.plan import SolvedDims
from medvlp_core.plugins.host import PluginHost
from medvlp_core.plugins.import_string import load_object
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.contract import Contract, Layout, TensorSpec, View
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import CheckFailed, NotApplicable
from medvlp_core.testing.synthetic_batch import TEXT_PORTS, SyntheticBatch, grid_patches, is_along, number_of, solve_sizes

#: Tokens of the longest text where the contract does not say.
_LONGEST = 9


@attrs.frozen(kw_only=True)
class Pass:
    """One call: the view it runs in, its synthetic batch and the keyword arguments of ``forward``."""

    view: View
    synthetic_batch: SyntheticBatch
    arguments: dict[str, Tensor]


@attrs.frozen(kw_only=True)
class Outputs:
    """What a call gave: tensors by port, loss terms by name, and the object that was returned."""

    ports: dict[str, Tensor]
    losses: dict[str, Tensor]
    raw: Any

    def tensors(self) -> dict[str, Tensor]:
        """Ports and losses together, losses with ``loss.`` in front."""
        return {**self.ports, **{f"loss.{name}": value for name, value in self.losses.items()}}


@attrs.define(kw_only=True, slots=False)  # slots would leave no room for the cached sizes
class Example:
    """One set of parameters of a component."""

    name: str
    role: Role
    spec: ComponentSpec
    number: int

    @cached_property
    def contract(self) -> Contract:
        """What the spec declares with these parameters."""
        return self.spec.contract()

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Numbers for the symbols of what it needs."""
        try:
            return solve_sizes(self.contract)
        except ValueError as error:
            raise CheckFailed(f"{self}: the kit cannot make inputs: {error}; choose other numbers in examples()") from error

    @property
    def dims(self) -> SolvedDims:
        """What the builder gets: every symbol but the batch size and token counts that change from call to call."""
        free = {"B"}
        for need in self.contract.needs.values():
            is_changing = self.role.info.runs_in_views or need.view == "masked"
            if need.port == "image_tokens" and is_changing and isinstance(need.dims[1], str):
                free.add(need.dims[1])
        masks = {need.dims[1] for need in self.contract.needs.values() if need.port == "image_is_masked"}
        return SolvedDims(self.name, {name: size for name, size in self.sizes.items() if name not in free - masks})

    def build(self, seed: int = 0) -> Any:
        """The module (or data source, tokenizer, evaluator), with weights drawn from ``seed``, in training mode."""
        torch.manual_seed(seed)
        kind = load_object(type(self.spec).declaration.build, owner=self.name)
        built = kind(self.spec, self.dims)
        if not isinstance(built, interface_of(self.role)):
            wanted = interface_of(self.role).__name__
            raise CheckFailed(f"{self}: {type(self.spec).declaration.build} gives {type(built).__name__}, expected a {wanted}")
        return built

    def passes(self) -> tuple[Pass, Pass]:
        """Two calls with different batch sizes and text lengths: clean and masked, or masked tokens dropped and replaced."""
        most = self.longest
        lengths = (most, max(2, most - 3), 2), (max(2, most - 2), 2)
        layout: Layout = "dropped" if self.is_viewed else "replaced"  # a clean view has all tokens as it is
        return self.make_pass("clean", lengths[0]), self.make_pass("masked", lengths[1], layout, seed=1)

    @property
    def longest(self) -> int:
        """Tokens of the longest text of its synthetic batches."""
        ports = ("token_ids", "text_is_valid", "text_tokens", "text_embeddings", "fused_text_tokens")
        found = (number_of(need.dims[1], self.sizes) for need in self.contract.needs.values() if need.port in ports)
        return next((size for size in found if size is not None), _LONGEST)

    def make_pass(self, view: View, lengths: Sequence[int], layout: Layout = "dropped", seed: int = 0) -> Pass:
        """A call with texts of these lengths (where the component takes none so long, shorter), and inputs drawn from ``seed``."""
        synthetic_batch = SyntheticBatch(
            self.contract, self.sizes, tuple(min(one, self.longest) for one in lengths), self._layout(layout), seed
        )
        return Pass(view=view, synthetic_batch=synthetic_batch, arguments=self._arguments(synthetic_batch, view))

    def _layout(self, requested: Layout) -> Layout:
        """What the component itself asks for or gives counts more."""
        specs = (*self.contract.needs.values(), *self.contract.gives.values())
        return next((spec.layout for spec in specs if spec.layout and spec.port == "image_tokens"), requested)

    def _arguments(self, synthetic_batch: SyntheticBatch, view: View) -> dict[str, Tensor]:
        found = {}
        for argument, need in self.contract.needs.items():
            if need.dtype == "shape":
                continue
            wanted: View = need.view or (view if self.role.info.runs_in_views else "clean")
            tensor = synthetic_batch.tensor(need, wanted)
            if tensor is not None:
                found[argument] = tensor
            elif not need.is_optional:
                raise CheckFailed(f"{self}: needs {argument} in the {wanted} view, and nothing is masked there")
        return found

    def call(self, module: nn.Module, given: dict[str, Tensor]) -> Outputs:
        """Call the module as a model does."""
        if self.role is Role.TEXT_ENCODER:
            embedded = module.embed(token_ids=given["token_ids"])  # type: ignore[operator]
            encoded = module.encode(text_embeddings=embedded, text_is_valid=given["text_is_valid"])  # type: ignore[operator]
            return Outputs(ports={"text_embeddings": embedded, "text_tokens": encoded}, losses={}, raw=encoded)
        return self.read(module(**given))

    def read(self, raw: Any) -> Outputs:
        """What a forward pass returned, by port and loss term.

        Raises:
            CheckFailed: it is not the container of the role.
        """
        if self.role is Role.ALIGNMENT:
            return Outputs(ports={}, losses=_terms(self, raw), raw=raw)
        if self.role is Role.DECODER:
            if not isinstance(raw, tuple) or not hasattr(raw, "losses") or not hasattr(raw, "prediction"):
                raise CheckFailed(f"{self}: forward returned {type(raw).__name__}, expected a Output")
            ports = dict.fromkeys([spec.port or "" for spec in self.contract.gives.values()], raw.prediction)
            return Outputs(ports=ports, losses=_terms(self, raw.losses), raw=raw)
        if not isinstance(raw, tuple) or not hasattr(raw, "_asdict"):
            raise CheckFailed(f"{self}: forward returned {type(raw).__name__}, expected the NamedTuple of its role")
        ports = {port: value for port, value in raw._asdict().items() if value is not None}
        return Outputs(ports=ports, losses={}, raw=raw)

    def embedding_inputs(self, synthetic_batch: SyntheticBatch) -> dict[str, Tensor]:
        """What an alignment makes vectors of: tokens of whole images and texts, whatever view its losses want.

        Raises:
            NotApplicable: it takes no tokens of one of them.
        """
        needs = {need.port: need for need in self.contract.needs.values()}
        if "image_tokens" not in needs or "text_tokens" not in needs:
            raise NotApplicable("it does not take image tokens and text tokens")
        image, text = (attrs.evolve(needs[port], view="clean") for port in ("image_tokens", "text_tokens"))
        prefix = attrs.evolve(image, port="image_prefix", dims=("B", self.sizes.get("P", 1), image.dims[2]))
        found = {spec.port or "": synthetic_batch.tensor(spec, "clean") for spec in (image, prefix, text)}
        found |= {name: synthetic_batch.fixed[name, None] for name in ("text_is_valid", "word_ids")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def embed(self, module: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Vectors of an alignment for whole images and texts."""
        image = module.embed_image(given["image_tokens"], given["image_prefix"])  # type: ignore[operator]
        text = module.embed_text(given["text_tokens"], given["text_is_valid"], given["word_ids"])  # type: ignore[operator]
        return {"image_embedding": image, "text_embedding": text}

    def declared(self, port: str) -> TensorSpec | None:
        """What the contract says of a port that it gives, in any view."""
        return next((spec for spec in self.contract.gives.values() if spec.port == port), None)

    @property
    def is_viewed(self) -> bool:
        """Whether a model calls it once for each view."""
        return self.role.info.runs_in_views

    def is_text(self, port: str) -> bool:
        """Whether a port that it needs or gives stands along the text, so that its padding means nothing."""
        specs = (*self.contract.needs.values(), *self.contract.gives.values())
        return any(is_along(spec, TEXT_PORTS, self.contract) for spec in specs if spec.port == port)

    @property
    def patches(self) -> int:
        """Patches N of its synthetic batches."""
        return grid_patches(self.contract, self.sizes)

    def __str__(self) -> str:
        return f"example {self.number} of {self.name}"


def _terms(example: Example, raw: Any) -> dict[str, Tensor]:
    if not isinstance(raw, dict) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckFailed(f"{example}: the losses are {type(raw).__name__}, expected a dict of scalar tensors by name")
    return raw


@attrs.define(slots=False)
class Subject:
    """A registered component with its examples."""

    host: PluginHost
    name: str

    @property
    def kind(self) -> type[ComponentSpec]:
        """Its spec class."""
        return self.host.components[self.name]

    @property
    def role(self) -> Role:
        """Its role."""
        return self.kind.declaration.role

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """Its examples, in their order."""
        specs: Iterable[ComponentSpec] = self.kind.examples()
        return tuple(Example(name=self.name, role=self.role, spec=spec, number=at) for at, spec in enumerate(specs, start=1))

    def calls(self) -> Iterator[tuple[Example, Any, Pass]]:
        """Every example, freshly built in evaluation mode, with each of its passes."""
        for example in self.examples:
            for one in example.passes():
                yield example, example.build().eval(), one
