"""The composed model: runs a plan's calls and sums the weighted losses. Read :meth:`ComposedModel.forward` top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError, describe_error
from medvlp_core.model.between_steps import BetweenSteps, PartFailed
from medvlp_core.model.each import run_each
from medvlp_core.model.generation import GeneratedTexts, generate
from medvlp_core.model.pair_scores import score_pairs
from medvlp_core.model.running import Ports
from medvlp_core.nn.batch import Batch, ImageFeatures, Output, StepOutput, TokenBatch
from medvlp_core.nn.interfaces import Fusion, HasAttentionMaps, ImageEncoder, Masking, TextEncoder
from medvlp_core.planning.losses import weight_at
from medvlp_core.planning.missing import why_missing
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import INPUTS, Call, Missing, PlannedComponent, PortKey
from medvlp_core.spec.contract import Symbol
from medvlp_core.spec.roles import Role

#: How far training has come: a scalar that the training loop puts into every batch.
PROGRESS = PortKey("progress")


class Phase(Enum):
    """What a forward pass is for: the whole of a step, or one of the three of a contrast over a step.

    ``PORTS`` computes what calls that mix rows take, of one micro-batch. ``CONTRAST`` runs these calls over the rows of the step,
    which are its batch. ``ROWS`` runs all other calls on one micro-batch.
    """

    WHOLE = "whole"
    PORTS = "ports"
    CONTRAST = "contrast"
    ROWS = "rows"


class ComposedModel(BetweenSteps):
    """The trainable parts of a plan, each under its slot's name. Made by :func:`medvlp_core.model.build.build_model`."""

    def __init__(self, plan: ModelPlan, parts: dict[str, nn.Module]) -> None:
        super().__init__(plan)
        dims = plan.dims(INPUTS)
        self.image_shape = (dims.get("C"), dims.get("H"), dims.get("W"))
        self.masking: Masking | None = parts.get("model.masking")  # type: ignore[assignment]
        self.maskings = _block(parts, "model.maskings")
        self.image_encoder: ImageEncoder | None = parts.get("model.image_encoder")  # type: ignore[assignment]
        self.text_encoder: TextEncoder | None = parts.get("model.text_encoder")  # type: ignore[assignment]
        self.fusion: Fusion | None = parts.get("model.fusion")  # type: ignore[assignment]
        self.parts = _block(parts, "model.parts")
        self.alignments = _block(parts, "model.alignments")
        self.decoders = _block(parts, "model.decoders")
        self._trained_calls = plan.trained_calls
        self.contrast = plan.contrast
        self.reset_followers()

    def forward(
        self, batch: Batch, phase: Phase = Phase.WHOLE, gradients: Mapping[str, Tensor] | None = None, *, is_last: bool = False
    ) -> StepOutput:
        """One training step: the plan's calls in order (``medvlp explain RECIPE`` prints them), and the weighted sum of the losses.

        A step with ``train.contrast_over: step`` has several passes (:class:`Phase`). ``gradients`` are what its contrast asks of
        the ports of a micro-batch; the pass that ``is_last`` reaches every trained parameter.

        Raises:
            SpecError: a component returned something else than its contract says (MV206).
            PartFailed: a component's own code raised something (MV306).
            DataError: a tensor of the batch is not there, or has another dtype or shape than the model takes (MV505).
        """
        contrast = self.contrast
        if phase is Phase.WHOLE or contrast is None:
            return self._step(self.plan.calls, self.given(batch), batch)
        if phase is Phase.PORTS:
            ports = self.given(batch)
            self._run_calls(contrast.before, ports, batch)
            for call in contrast.mixing:
                self._check_takes(call, ports, batch)
            found = {str(key): ports[key] for key in contrast.ports}
            return StepOutput(loss=ports[PROGRESS].new_zeros(()), losses={}, ports=found)
        if phase is Phase.CONTRAST:
            return self._step(contrast.mixing, {PortKey.parse(name): value for name, value in batch.items()}, batch)
        ports = self.given(batch)
        output = self._step(contrast.row_wise, ports, batch)
        pull = output.loss.new_zeros(())
        for name, gradient in (gradients or {}).items():
            port = ports[PortKey.parse(name)]
            wide = torch.promote_types(port.dtype, torch.float32)  # of the value nobody makes use; it should be finite
            pull = pull + (port.to(wide) * gradient.to(wide)).sum()
        if is_last:
            # Shards get their gradient in every pass; DistributedDataParallel would wait for a parameter that no call has used.
            used = (one for one in self.parameters() if one.requires_grad and not isinstance(one, DTensor))
            pull = pull + 0.0 * sum(one.sum() for one in used)
        return output._replace(pull=pull)

    def _step(self, calls: Iterable[Call], ports: Ports, batch: Batch) -> StepOutput:
        """Run calls, which add to ``ports``, and weigh what they lose."""
        losses, shown = self._run_calls(calls, ports, batch)
        progress = ports[PROGRESS]
        loss = sum(weight_at(self.plan.losses[name], progress) * value for name, value in losses.items())
        loss = loss if isinstance(loss, Tensor) else progress.new_zeros(())
        keys = dict.fromkeys(key for taken in self._after.values() for _, key in taken)
        rows = {str(key): ports[key].detach() for key in keys if key in ports}
        if any(len(one) != len(batch["record_index"]) for one in rows.values() if "record_index" in batch):
            raise self._wrong_rows(rows, len(batch["record_index"]))
        return StepOutput(loss=loss, losses=losses, ports=shown, rows=rows)

    def _run_calls(self, calls: Iterable[Call], ports: Ports, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run calls in order, which add to ``ports``; their losses, and the ports that are shown."""
        losses: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {}
        for call in calls:
            self._check_takes(call, ports, batch)
            with nullcontext() if call in self._trained_calls else torch.no_grad():
                output = self.run(call, {argument: ports[key] for argument, key in call.takes})
            ports |= (given := {key: output.ports[key.name] for key in call.gives})
            losses |= output.losses
            component = self.plan.components[call.path]
            if component.opens is not None or component.role.info.emits_losses:
                shown |= {str(key): value for key, value in given.items()}
        return losses, shown

    def _check_takes(self, call: Call, ports: Ports, batch: Batch) -> None:
        if lacking := [str(key) for _, key in call.takes if key not in ports]:
            raise self._lacking(call, lacking, batch)

    def run(self, call: Call, arguments: dict[str, Any]) -> Output:
        """What a call gives: its ports by name, its losses by their full names.

        Raises:
            SpecError: it is not what the component's contract says (MV206).
            PartFailed: the component's own code raised something (MV306). The message names the component.
        """
        component = self.plan.components[call.path]
        try:
            with torch.no_grad() if component.follows is not None else nullcontext():
                method = self._method(call)
            returned = run_each(method, call.folds, **arguments) if call.folds else method(**arguments)
        except (MedvlpError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            text = f"{component.label} failed: {describe_error(error)}"
            raise PartFailed(
                Problem(code="MV306", text=text, position=component.position(), details=(self.origin(component),))
            ) from error
        output = self._output(component, call, returned)
        if call.name == "fused" and call.returns == "output":  # encode, and what it gives has other names here
            output = Output(ports={f"fused_{port}": value for port, value in output.ports.items()})
        ports = self._checked_ports(component, call, output.ports)
        return Output(
            ports=ports, losses={} if component.follows is not None else self._checked_losses(component, call, output.losses)
        )

    def _lacking(self, call: Call, names: list[str], batch: Batch) -> DataError:
        component = self.plan.components[call.path]
        text = f"{component.label} takes {', '.join(names)}, which the batch does not hold"
        hint = f"the batch holds {', '.join(batch) or 'nothing'}"
        return DataError(Problem(code="MV505", text=text, position=component.position(), hint=hint))

    def _method(self, call: Call) -> Callable[..., Any]:
        part = self.part(call.path)
        method: Callable[..., Any] = part if call.method == "forward" else getattr(part, call.method)
        return method

    def part(self, path: str) -> nn.Module:
        """The module of a component, by its path in the recipe: ``model.alignments.gla``; that of another one if it shares it."""
        block, _, slot = self.plan.components[path].owner.removeprefix("model.").partition(".")
        found: nn.Module = getattr(self, block)[slot] if slot else getattr(self, block)
        return found

    def given(self, batch: Batch) -> Ports:
        """What a batch brings, by port and view; where it holds no ``progress``, that is 1.

        Raises:
            DataError: a tensor has another dtype or shape than the model takes (MV505).
        """
        if "image" in batch and len(self.plan.wiring.fields["image"].axes) == 3:
            self.check_image(batch["image"])
        if "token_ids" in batch:
            _check_tokens(batch)
        given = {PortKey.parse(name): value for name, value in batch.items() if name != "record_index"}
        if PROGRESS not in given:
            given[PROGRESS] = torch.ones((), device=next(iter(batch.values())).device) if batch else torch.ones(())
        elif given[PROGRESS].ndim or not given[PROGRESS].is_floating_point():
            text = f"progress must be a float of shape (), found {_described(given[PROGRESS])}"
            raise DataError(Problem(code="MV505", text=text, hint="leave it out after training: it is 1 then"))
        for key, value in given.items():
            self._check_port(key, value)
        return given

    def _check_port(self, key: PortKey, value: Tensor) -> None:
        """Refuse a tensor of another kind, rank or size than the plan has solved for it (MV505)."""
        wiring = self.plan.wiring
        if (provider := wiring.batch.get(key)) is None or wiring.views[key.view].opener is not None:
            return
        dims = [wiring.symbol(provider.path, provider.call, provider.view, dim) for dim in provider.spec.dims]
        wanted = [wiring.table.size(dim) if isinstance(dim, Symbol) else dim for dim in dims]
        kind = "bool" if value.dtype == torch.bool else "float" if value.is_floating_point() else "int"
        sizes = zip(value.shape, wanted, strict=False)
        if kind != provider.spec.dtype or value.ndim != len(wanted) or any(isinstance(b, int) and a != b for a, b in sizes):
            shape = ", ".join(str(b) if isinstance(b, int) else str(a) for a, b in zip(provider.spec.dims, wanted, strict=True))
            text = f"{key} must be {provider.spec.dtype} of shape ({shape}), found {_described(value)}"
            raise DataError(Problem(code="MV505", text=text, hint="the input pipeline makes such batches from records"))

    def _output(self, component: PlannedComponent, call: Call, returned: Any) -> Output:
        if call.returns == "output" and isinstance(returned, Output):
            return returned
        if call.returns == "tensor" and isinstance(returned, Tensor):
            return Output(ports={next(iter(call.gives)).name: returned} if call.gives else {})
        if call.returns == "tuple" and hasattr(returned, "_asdict") and not isinstance(returned, Output):
            return Output(ports={port: value for port, value in returned._asdict().items() if value is not None})
        expected = {"output": "Output", "tensor": "a tensor", "tuple": str(component.role.info.output)}[call.returns]
        expected += "" if call.returns == "tensor" else " of medvlp_core.nn.batch"
        raise self._wrong_output(component, call, _kind(returned), expected)

    def _checked_ports(self, component: PlannedComponent, call: Call, ports: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not isinstance(ports, Mapping):
            names = ", ".join(key.name for key in call.gives) or "no ports"
            raise self._wrong_output(component, call, f"{_kind(ports)} of ports", f"a dict with {names}")
        if missing := [key.name for key in call.gives if key.name not in ports]:
            text = f"{', '.join(missing)}, as its contract declares"
            raise self._wrong_output(component, call, f"only {', '.join(ports)}" if ports else "no ports", text)
        for key in call.gives:
            if not isinstance(ports[key.name], Tensor):
                raise self._wrong_output(component, call, f"{_kind(ports[key.name])} as {key.name}", "a tensor")
        return ports

    def _checked_losses(self, component: PlannedComponent, call: Call, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        declared = component.calls[call.name].losses
        names = ", ".join(declared) or "no losses"
        if not isinstance(losses, Mapping):
            raise self._wrong_output(component, call, f"{_kind(losses)} of losses", f"a dict with {names}")
        if set(losses) != set(declared):
            text = f"{names}, as its contract declares"
            raise self._wrong_output(component, call, f"the losses {', '.join(losses) or '(none)'}", text)
        for term, value in losses.items():
            if not isinstance(value, Tensor) or value.ndim:
                raise self._wrong_output(component, call, f"{_kind(value)} as the loss {term!r}", "a scalar tensor")
        return {f"{component.slot}.{term}": losses[term] for term in declared}

    def _wrong_rows(self, rows: Mapping[str, Tensor], count: int) -> SpecError:
        found = ", ".join(f"{name} ({len(one)} rows)" for name, one in rows.items() if len(one) != count)
        text = f"after a step every record has one row, and in a batch of {count} there came {found}"
        return SpecError(Problem(code="MV206", text=text, hint="its first axis must be the batch"))

    def _wrong_output(self, component: PlannedComponent, call: Call, found: str, expected: str) -> SpecError:
        method = "" if call.name == "forward" else f" from {call.method}"
        text = f"{component.label} returned {found}{method}, expected {expected}"
        return SpecError(Problem(code="MV206", text=text, position=component.position(), details=(self.origin(component),)))

    # ------------------------------------------------------------------------------------------------- use after training

    def ports(self, batch: Batch, *wanted: str) -> dict[str, Tensor]:
        """Compute chosen ports of a batch, e.g. ``fused_text_tokens``, ``image_tokens@masked`` or ``gla.image_embedding``.

        Nothing that they do not need is computed, and the batch needs to hold only what they come from.

        Raises:
            SpecError: the model does not give such a port, or makes it from something that the batch does not hold (MV201).
        """
        keys = [self.key_of(name) for name in wanted]
        ports = self.given(batch)
        for call in self.plan.wiring.route(keys):
            if lacking := [str(key) for _, key in call.takes if key not in ports]:
                text = f"{', '.join(wanted)} comes from {', '.join(lacking)} too, which the batch does not hold"
                raise SpecError(Problem(code="MV201", text=text, hint=f"the batch holds {', '.join(batch) or 'nothing'}"))
            output = self.run(call, {argument: ports[key] for argument, key in call.takes})
            ports |= {key: output.ports[key.name] for key in call.gives}
        return {name: ports[key] for name, key in zip(wanted, keys, strict=True)}

    def key_of(self, name: str) -> PortKey:
        """The key of a port that is computed, by its short or full name.

        Raises:
            SpecError: the model does not give such a port (MV201).
        """
        port, view = PortKey.parse(name)
        wiring = self.plan.wiring
        found = wiring.resolve(port, view) if view in wiring.views else Missing("", port, view)
        if isinstance(found, PortKey) and found not in wiring.shapes:
            return found
        given = sorted({key.name for key in wiring.batch} | set(wiring.declared))
        text = f"this model does not give the port {name}"
        if isinstance(found, Missing) and (found.candidates or found.causes):
            text = f"this model does not give {why_missing(wiring, [found])}"
        raise SpecError(Problem(code="MV201", text=text, hint=f"ports of this model: {', '.join(given)}"))

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Patch and prefix tokens of whole images: (B, C, H, W) to (B, N, Di), (B, P, Di).

        Raises:
            DataError: not normalised float images of the model's size (MV505).
        """
        self._part("image_encoder")
        return ImageFeatures(*self.ports({"image": image}, "image_tokens", "image_prefix").values())

    def encode_text(self, tokens: TokenBatch | Batch) -> Tensor:
        """Contextual tokens of whole texts, without any image: (B, L) to (B, L, Dt).

        Raises:
            DataError: the tensors are not a tokenizer's (MV505).
        """
        self._part("text_encoder")
        return self.ports(_token_batch(tokens), "text_tokens")["text_tokens"]

    def embed_image(self, image: Tensor, *, alignment: str | None = None) -> Tensor:
        """L2-normalised image vectors in the shared space of an alignment (the first one by default): (B, E)."""
        name = f"{self._alignment(alignment)}.image_embedding"
        return self.ports({"image": image}, name)[name]

    def embed_text(self, tokens: TokenBatch | Batch, *, alignment: str | None = None) -> Tensor:
        """L2-normalised text vectors in the shared space of an alignment (the first one by default): (B, E)."""
        name = f"{self._alignment(alignment)}.text_embedding"
        return self.ports(_token_batch(tokens), name)[name]

    @torch.no_grad()
    def generate(self, batch: Batch, *, decoder: str | None = None, uses_own: bool = True, **options: Any) -> GeneratedTexts:
        """Write a text for each row of a batch, which goes on from its prompt: ``token_ids`` (B, P), [CLS] at least.

        The call ``generate`` of a decoder goes first, where there is one and the prompts are nothing but [CLS]; it gets the
        options that are given. Else, and with ``uses_own=False``, the core appends one token after another, over the port
        ``next_word_logits``: only calls that the ids reach are run again. Use it in evaluation mode.

        Args:
            batch: what the decoder comes from (``image``), and ``token_ids``; prompts, equally long.
            decoder: the slot of one of several, the first one by default.
            uses_own: whether a decoder's own ``generate`` may be used.
            options: ``max_length`` (tokens with the prompt; the longest text by default), ``end_id`` (the tokenizer's by
                default), ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``seed``; further ones go to the decoder.

        Raises:
            SpecError: the model writes no texts, or the option is none of the loop's (MV201).
            DataError: the prompts do not fit (MV505).
        """
        return generate(self, batch, decoder=decoder, uses_own=uses_own, **options)

    @torch.no_grad()
    def score(self, images: Batch, texts: Batch, *, head: str | None = None, chunk_size: int = 256) -> Tensor:
        """How well each image belongs to each text, over the port ``match_score``: (N, M).

        Calls that only images, or only texts, lead to run once for each row; those that both lead to run for ``chunk_size`` pairs
        at once. Use it in evaluation mode.

        Args:
            images: what a batch holds of N images.
            texts: what a batch holds of M texts.
            head: the slot of one of several that give the port.
            chunk_size: rows, or pairs, that go through the model at once.

        Raises:
            SpecError: the model scores no pairs, or a score depends on other pairs (MV201).
        """
        return score_pairs(self, images, texts, head=head, chunk_size=chunk_size)

    def attention_maps(self, batch: Batch) -> Tensor | None:
        """Which patches each word looks at, on clean inputs: (B, L, N), from the fusion or the first alignment that can tell."""
        found = self.attention_maps_and_provider(batch)
        return None if found is None else found[0]

    def attention_maps_and_provider(self, batch: Batch) -> tuple[Tensor, str] | None:
        """:meth:`attention_maps`, and the path of the part that gave them (``model.fusion``)."""
        for role in (Role.FUSION, Role.ALIGNMENT):
            for component in self.plan.of_role(role).values():
                module = self.part(component.path)
                if isinstance(module, HasAttentionMaps):
                    takes = self.plan.wiring.takes(component.path, only=True)
                    ports = self.ports(batch, *(str(key) for _, key in takes))
                    maps = module.attention_maps(**{argument: ports[str(key)] for argument, key in takes})
                    if maps is not None:
                        return maps, component.path
        return None

    def check_image(self, image: Tensor) -> None:
        """Refuse a batch that is not normalised float images of the model's size.

        Raises:
            DataError: it is none (MV505).
        """
        shape = ", ".join("?" if size is None else str(size) for size in self.image_shape)
        sizes = zip(image.shape[1:], self.image_shape, strict=False)
        if image.is_floating_point() and image.ndim == 4 and all(b in (None, a) for a, b in sizes):
            return
        hint = "the input pipeline makes such images from files (cropped, resized, normalised); LoadedRun.read_image reads one"
        text = f"image must be float of shape (B, {shape}), found {_described(image)}"
        raise DataError(Problem(code="MV505", text=text, hint=hint))

    def _part(self, name: str) -> None:
        if getattr(self, name) is None:
            raise SpecError(Problem(code="MV201", text=f"this model has no {name}"))

    def _alignment(self, slot: str | None) -> str:
        if not self.alignments:
            raise SpecError(Problem(code="MV201", text="this model has no alignment, so there is no shared space to embed into"))
        if slot is not None and slot not in self.alignments:
            hint = f"alignments of this model: {', '.join(self.alignments)}"
            raise SpecError(Problem(code="MV201", text=f"this model has no alignment {slot!r}", hint=hint))
        return slot or next(iter(self.alignments))


def _block(parts: dict[str, nn.Module], path: str) -> nn.ModuleDict:
    return nn.ModuleDict({one.rpartition(".")[2]: module for one, module in parts.items() if one.startswith(f"{path}.")})


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _token_batch(tokens: TokenBatch | Batch) -> Batch:
    found = tokens if isinstance(tokens, dict) else tokens._asdict()
    return {name: found[name] for name in TokenBatch._fields if name in found}


def _check_tokens(batch: Batch) -> None:
    for name, dtype in (("token_ids", torch.int64), ("text_is_valid", torch.bool), ("word_ids", torch.int64)):
        tensor = batch.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.ndim != 2 or tensor.shape != batch["token_ids"].shape:
            wanted = f"{str(dtype).removeprefix('torch.')} of shape (B, L)"
            found = "nothing" if tensor is None else _described(tensor)
            text = f"{name} must be {wanted} like token_ids, found {found}"
            raise DataError(Problem(code="MV505", text=text, hint="use what Tokenizer.encode returns"))


def _kind(output: Any) -> str:
    """What a module returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor ({_described(output)})"
    size = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
    return f"{type(output).__name__}{size}"
