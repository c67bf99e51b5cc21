"""One component under test: its examples, built and called as a model would build and call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medvlp_core.model.build import interface_of, missing_methods
from medvlp_core.nn.batch import Output
from medvlp_core.planning.plan import SolvedDims
from medvlp_core.planning.wiring import form_of
from medvlp_core.plugins.host import PluginHost
from medvlp_core.plugins.import_string import load_object
from medvlp_core.spec.component import ComponentSpec, calls_of
from medvlp_core.spec.contract import CLEAN, Contract, Layout, TensorSpec
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import CheckFailed
from medvlp_core.testing.synthetic_batch import (
    MASKED,
    MASKS,
    TEXT_PORTS,
    SyntheticBatch,
    grid_patches,
    is_along,
    joined,
    number_of,
    qualified,
    solve_sizes,
)

#: Tokens of the longest text where the contract does not say.
_LONGEST = 9


@attrs.frozen(kw_only=True)
class Pass:
    """The arguments of a call in a view, and the synthetic batch that they come from."""

    view: str
    synthetic_batch: SyntheticBatch
    arguments: dict[str, Tensor]


@attrs.frozen(kw_only=True)
class Outputs:
    """What a call gave: tensors by port, loss terms by name."""

    ports: dict[str, Tensor]
    losses: dict[str, Tensor]

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
    def contracts(self) -> dict[str, Contract]:
        """What the spec declares of each call with these parameters. ``fused`` is ``encode`` once more, and not tried again."""
        return {name: contract for name, contract in calls_of(self.spec).items() if name != "fused"}

    @property
    def calls(self) -> tuple[ExampleCall, ...]:
        """Every call."""
        return tuple(ExampleCall(example=self, name=name, contract=contract) for name, contract in self.contracts.items())

    @property
    def trained(self) -> tuple[ExampleCall, ...]:
        """The calls that training goes through: those with losses if there are any."""
        return tuple(call for call in self.calls if call.contract.losses) or self.calls

    @cached_property
    def joined(self) -> Contract:
        """All calls as one."""
        return joined(self.contracts)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Numbers for the symbols of what it needs, as :func:`qualified` names them."""
        try:
            return solve_sizes(self.joined)
        except ValueError as error:
            raise CheckFailed(f"{self}: the kit cannot make inputs: {error}; choose other numbers in examples()") from error

    @property
    def dims(self) -> SolvedDims:
        """What the builder gets: the sizes that a call lists, as far as what it needs fixes them."""
        declared = tuple(dict.fromkeys(name for contract in self.contracts.values() for name in contract.sizes))
        return SolvedDims(self.name, {name: self.sizes[name] for name in declared if name in self.sizes}, declared)

    def build(self, seed: int = 0) -> Any:
        """The module (or data source, tokenizer, evaluator), with weights drawn from ``seed``, in training mode."""
        torch.manual_seed(seed)
        declared = type(self.spec).declaration
        built = load_object(declared.build, owner=self.name, install=declared.install)(self.spec, self.dims)
        if not isinstance(built, interface_of(self.role)):
            wanted = interface_of(self.role).__name__
            raise CheckFailed(f"{self}: {declared.build} gives {type(built).__name__}, expected a {wanted}")
        if missing := missing_methods(self.role, self.contracts, built):
            raise CheckFailed(f"{self}: {declared.build} has no method {', '.join(missing)}, which calls() declares")
        return built

    def declared(self, port: str) -> TensorSpec | None:
        """What the contracts say of a port that it gives, on whole inputs."""
        found = [spec for contract in self.contracts.values() for spec in contract.gives.values() if spec.port == port]
        return min(found, key=lambda spec: spec.when is not None, default=None)

    @property
    def patches(self) -> int:
        """Patches N of its synthetic batches."""
        return grid_patches(self.joined, self.sizes)

    def size(self, ports: tuple[str, ...], axis: int, default: int) -> int:
        """The number that it needs at an axis of the first of these ports that it takes."""
        for call in self.calls:
            for need in call.contract.needs.values():
                if need.port in ports and axis < len(need.dims):
                    number = number_of(need.dims[axis], call.sizes)
                    if number is not None:
                        return number
        return default

    def __str__(self) -> str:
        return f"example {self.number} of {self.name}"


@attrs.frozen(kw_only=True)
class ExampleCall:
    """One call of an example: what checks of inputs and outputs look at."""

    example: Example
    name: str
    contract: Contract

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers for the symbols of what the call needs."""
        names = qualified(self.example.contracts, self.name)
        return {symbol: self.example.sizes[name] for symbol, name in names.items() if name in self.example.sizes}

    @property
    def is_viewed(self) -> bool:
        """Whether a model makes the call for each view."""
        return not self.contract.losses and self.example.role is not Role.MASKING

    @property
    def is_writing(self) -> bool:
        """Whether it writes a text, token by token, for use after training: without gradient, and as long as what it writes."""
        return self.example.role is Role.DECODER and self.name == "generate"

    @property
    def views(self) -> tuple[str, str]:
        """The views of its two passes: clean and masked; one without views, or one that cannot do without a mask, has one."""
        if not self.is_viewed:
            return CLEAN, CLEAN
        is_masked = any(need.port in MASKS and need.view is None and not need.is_optional for need in self.contract.needs.values())
        return MASKED if is_masked else CLEAN, MASKED

    def passes(self) -> tuple[Pass, Pass]:
        """Two calls with different batch sizes and text lengths: clean and masked, or masked tokens dropped and replaced."""
        most = self.longest
        lengths = (most, max(2, most - 3), 2), (max(2, most - 2), 2)
        layout: Layout = "dropped" if self.is_viewed else "replaced"  # a clean view has all tokens as it is
        return self.make_pass(self.views[0], lengths[0]), self.make_pass(self.views[1], lengths[1], layout, seed=1)

    @property
    def longest(self) -> int:
        """Tokens of the longest text of its synthetic batches."""
        ports = ("token_ids", "text_is_valid", "text_tokens", "text_embeddings", "fused_text_tokens")
        found = (number_of(need.dims[1], self.sizes) for need in self.contract.needs.values() if need.port in ports)
        return next((size for size in found if size is not None), _LONGEST)

    def make_pass(self, view: str, lengths: Sequence[int], layout: Layout = "dropped", seed: int = 0) -> Pass:
        """A call with texts of these lengths (where the component takes none so long, shorter), and inputs drawn from ``seed``."""
        vocabulary = next((need for need in self.example.joined.needs.values() if need.port == "vocabulary"), None)
        synthetic_batch = SyntheticBatch(
            contract=self.contract,
            sizes=self.sizes,
            lengths=tuple(min(one, self.longest) for one in lengths),
            layout=self._layout(layout),
            seed=seed,
            patches=self.example.patches,
            specials=tuple(number_of(dim, self.example.sizes) for dim in vocabulary.dims) if vocabulary else (None, None),
        )
        return Pass(view=view, synthetic_batch=synthetic_batch, arguments=self._arguments(synthetic_batch, view))

    def _layout(self, requested: Layout) -> Layout:
        """What the component itself asks for or gives counts more."""
        specs = (*self.contract.needs.values(), *self.contract.gives.values())
        return next((spec.layout for spec in specs if spec.layout and spec.port == "image_tokens"), requested)

    def _arguments(self, synthetic_batch: SyntheticBatch, view: str) -> dict[str, Tensor]:
        found = {}
        for argument, need in self.contract.needs.items():
            if need.dtype == "shape":
                continue
            wanted = need.view or view
            tensor = synthetic_batch.tensor(need, wanted)
            if tensor is not None:
                found[argument] = tensor
            elif not need.is_optional:
                raise CheckFailed(f"{self}: needs {argument} in the {wanted} view, and nothing is masked there")
        return found

    def method(self, module: nn.Module) -> Callable[..., Any]:
        """What a model calls."""
        found: Callable[..., Any] = module if self.name == "forward" else getattr(module, self.name)
        return found

    def run(self, module: nn.Module, given: dict[str, Tensor]) -> Outputs:
        """Call the module as a model does."""
        return self.read(self.method(module)(**given))

    def read(self, raw: Any) -> Outputs:
        """What the call returned, by port and loss term.

        Raises:
            CheckFailed: it is not what calls of this kind return.
        """
        form = form_of(self.example.role, self.name, self.contract)
        if form == "tensor" and isinstance(raw, Tensor):
            return Outputs(
                ports={next(str(spec.port) for spec in self.contract.gives.values() if spec.dtype != "shape"): raw}, losses={}
            )
        if form == "tuple" and hasattr(raw, "_asdict") and not isinstance(raw, Output):
            return Outputs(ports={port: value for port, value in raw._asdict().items() if value is not None}, losses={})
        if form == "output" and isinstance(raw, Output):
            return Outputs(ports=_tensors(self, "ports", raw.ports), losses=_tensors(self, "losses", raw.losses))
        wanted = {
            "tensor": "a tensor",
            "tuple": f"the NamedTuple of its role, {self.example.role.info.output}",
            "output": "an Output",
        }
        raise CheckFailed(f"{self}: {self.name} returned {type(raw).__name__}, expected {wanted[form]}")

    def given(self, arguments: Iterable[str]) -> dict[str, TensorSpec]:
        """What the contract gives by port if these arguments are there; shape ports carry no tensor."""
        filled = set(arguments)
        specs = [
            spec for spec in self.contract.gives.values() if spec.dtype != "shape" and (spec.when is None or spec.when in filled)
        ]
        return {str(spec.port): spec for spec in sorted(specs, key=lambda spec: spec.when is not None)}

    def is_text(self, port: str) -> bool:
        """Whether a port that it needs or gives stands along the text, so that its padding means nothing."""
        specs = (*self.contract.needs.values(), *self.contract.gives.values())
        return any(is_along(spec, TEXT_PORTS, self.contract) for spec in specs if spec.port == port)

    def port(self, argument: str) -> str:
        """The port that fills an argument."""
        return self.contract.needs[argument].port or argument

    def has_rows(self, argument: str) -> bool:
        """Whether an argument has a row for each pair: progress and constant fields have none."""
        return self.contract.needs[argument].dims[:1] == ("B",)

    def pair(self, arguments: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        """One pair of a batch of arguments, as a batch of one."""
        return {name: value[index : index + 1] if self.has_rows(name) else value for name, value in arguments.items()}

    def __str__(self) -> str:
        return str(self.example) if self.name == "forward" else f"{self.example}, call {self.name}"


def _tensors(call: ExampleCall, what: str, found: Any) -> dict[str, Tensor]:
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckFailed(f"{call}: the {what} are {type(found).__name__}, expected a dict of tensors by name")
    return found


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

    def each_call(self) -> Iterator[ExampleCall]:
        """Every call of every example."""
        return (call for example in self.examples for call in example.calls)

    def passes(self) -> Iterator[tuple[ExampleCall, Any, Pass]]:
        """Every call with each of its passes, its example freshly built in evaluation mode."""
        for call in self.each_call():
            for one in call.passes():
                yield call, call.example.build().eval(), one
