"""What happens to a model between two steps: followers move after their sources, and modules take in the rows of the step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medvlp_core.errors import MedvlpError, Problem, SpecError, describe_error
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import PlannedComponent

M = TypeVar("M", bound="BetweenSteps")


class PartFailed(SpecError):
    """The code of a part of the model raised something; that is the cause."""


class BetweenSteps(nn.Module):
    """The state of a composed model beside its weights.

    ``frozen_modules`` are those that the recipe freezes wholly, ``fixed_parameters`` those that their own module does not train
    (sine-cosine positions), both by name.
    """

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__()
        self.plan = plan
        self.frozen_modules: tuple[str, ...] = ()
        self.fixed_parameters: frozenset[str] = frozenset()
        self._after = plan.after

    def part(self, path: str) -> nn.Module:
        """The module of a component, by its path in the recipe."""
        raise NotImplementedError

    def train(self: M, mode: bool = True) -> M:
        """As torch has it; followers, and modules that the recipe freezes wholly (``train.freeze``), stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_modules:
            self.get_submodule(name).eval()
        for follower, _, _ in self._followers():
            follower.eval()
        return self

    @torch.no_grad()
    def reset_followers(self, *, but: Collection[str] = ()) -> None:
        """Give components that follow others the weights of these, and freeze them; ``but``: paths that have weights already."""
        for follower, source, component in self._followers():
            follower.requires_grad_(False)
            if component.path not in but:
                _copy(follower.parameters(), source.parameters())
                _copy(follower.buffers(), source.buffers())
            follower.eval()

    @torch.no_grad()
    def update_followers(self) -> None:
        """``follower = decay * follower + (1 - decay) * source``, after a step that changed the weights; buffers are copied."""
        for follower, source, component in self._followers():
            averages: list[Tensor] = list(follower.parameters())
            if averages:
                torch._foreach_lerp_(averages, list[Tensor](source.parameters()), 1 - component.decay)
            _copy(follower.buffers(), source.buffers())

    def _followers(self) -> Iterator[tuple[nn.Module, nn.Module, PlannedComponent]]:
        for component in self.plan.components.values():
            if component.follows is not None:
                yield self.part(component.path), self.part(component.follows), component

    @torch.no_grad()
    def after_step(self, rows: Mapping[str, Tensor]) -> None:
        """Hand modules with state of their own the rows of a step, by full name (``Contract.after``).

        Raises:
            PartFailed: a module's own code raised something, or changed what a checkpoint would not bring back (MV306).
        """
        for path, taken in self._after.items():
            module: Any = self.part(path)
            before = {name: (one.shape, one._version, id(one)) for name, one in module.named_buffers()}
            try:
                module.after_step(**{argument: rows[str(key)] for argument, key in taken})
            except (MedvlpError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise self._failed_after(path, f"failed: {describe_error(error)}") from error
            saved = module.state_dict(keep_vars=True)
            for name, one in module.named_buffers():
                shape, version, number = before.get(name, (None, None, None))
                if shape != one.shape:
                    raise self._failed_after(path, f"gave the buffer {name} another shape, with which no checkpoint can be resumed")
                if (version, number) != (one._version, id(one)) and name not in saved:
                    raise self._failed_after(path, f"changed the buffer {name}, which is not persistent: a resumed run lacks it")

    def _failed_after(self, path: str, what: str) -> PartFailed:
        component = self.plan.components[path]
        text = f"{component.label}: after_step {what}"
        return PartFailed(Problem(code="MV306", text=text, position=component.position(), details=(self.origin(component),)))

    def buffers_after_step(self) -> tuple[str, ...]:
        """Names of the buffers that ``after_step`` changes: those of modules that have one, without those of their submodules.

        Every process computes the same for them, so that nothing needs to be sent, and a queue is large.
        """
        owners = [(self.plan.components[path].path.removeprefix("model."), self.part(path)) for path in self._after]
        return tuple(f"{name}.{one}" for name, module in owners for one, _ in module.named_buffers(recurse=False))

    def origin(self, component: PlannedComponent) -> str:
        """Where the code of a component comes from, for messages."""
        distribution = self.plan.host.components.distribution(component.name) or "no distribution"
        return f"{type(component.spec).declaration.build} from {distribution}"


def _copy(to: Iterable[Tensor], source: Iterable[Tensor]) -> None:
    for mine, theirs in zip(to, source, strict=True):
        mine.copy_(theirs)
