"""The composed model: runs a plan's steps and sums the weighted losses. Read :meth:`ComposedModel.forward` top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError, describe_error
from medvlp_core.nn.batch import DecoderOutput, ImageFeatures, ImageTextBatch, MaskPlan, StepOutput, TokenBatch
from medvlp_core.nn.interfaces import Alignment, Fusion, HasAttentionMaps, ImageEncoder, Masking, TextEncoder
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import INPUTS, PortKey, Step
from medvlp_core.spec.contract import View
from medvlp_core.spec.roles import Role

Ports = dict[PortKey, Tensor]


class PartFailed(SpecError):
    """The code of a part of the model raised something; that is the cause."""


class ComposedModel(nn.Module):
    """The trainable parts of a plan, each under its slot's name. Made by :func:`medvlp_core.model.build.build_model`."""

    def __init__(self, plan: ModelPlan, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.plan = plan
        dims = plan.dims(INPUTS)
        self.image_shape = (dims.get("C"), dims.get("H"), dims.get("W"))
        self.masking: Masking | None = parts.get("model.masking")  # type: ignore[assignment]
        self.image_encoder: ImageEncoder | None = parts.get("model.image_encoder")  # type: ignore[assignment]
        self.text_encoder: TextEncoder | None = parts.get("model.text_encoder")  # type: ignore[assignment]
        self.fusion: Fusion | None = parts.get("model.fusion")  # type: ignore[assignment]
        self.alignments = nn.ModuleDict({slot: parts[one.path] for slot, one in plan.of_role(Role.ALIGNMENT).items()})
        self.decoders = nn.ModuleDict({slot: parts[one.path] for slot, one in plan.of_role(Role.DECODER).items()})

    def forward(self, batch: ImageTextBatch) -> StepOutput:
        """One training step: mask, encode, fuse, then align and decode.

        Raises:
            SpecError: a component returned something else than its role and its contract say (MV206).
            PartFailed: a component's own code raised something (MV306).
            DataError: a tensor of the batch has another dtype or shape than the model takes (MV505).
        """
        self.check_image(batch.image)
        _check_tokens(batch.token_ids, batch.text_is_valid, batch.word_ids)
        ports = self._run(self.plan.steps, batch)
        losses: dict[str, Tensor] = {}
        predictions: dict[str, Tensor] = {}
        for slot, module in self.alignments.items():
            path = f"model.alignments.{slot}"
            losses |= self._terms(path, self._call(path, module, _arguments(self.plan.takes(path), ports)))
        for slot, module in self.decoders.items():
            path = f"model.decoders.{slot}"
            output = self._call(path, module, _arguments(self.plan.takes(path), ports))
            if not isinstance(output, DecoderOutput):
                raise self._wrong_output(path, _kind(output), "DecoderOutput of medvlp_core.nn.batch")
            losses |= self._terms(path, output.losses)
            predictions[slot] = output.prediction
        loss = sum(self.plan.losses[name] * value for name, value in losses.items())
        assert isinstance(loss, Tensor)
        return StepOutput(loss=loss, losses=losses, predictions=predictions, mask_plan=_mask_plan(ports))

    def _run(self, steps: Iterable[Step], batch: ImageTextBatch) -> Ports:
        """Run steps in order; each reads its arguments from the ports and adds what it gives."""
        ports: Ports = {
            ("image", None): batch.image,
            ("token_ids", "clean"): batch.token_ids,
            ("text_is_valid", None): batch.text_is_valid,
            ("word_ids", None): batch.word_ids,
        }
        if batch.image_target is not None:
            ports["image_target", None] = batch.image_target
        for step in steps:
            arguments = _arguments(step.takes, ports)
            if step.stage == "mask":
                assert self.masking is not None
                ports |= self._outputs(self._call(step.path, self.masking, arguments), step.path, "masked")
            elif step.stage == "encode_image":
                assert self.image_encoder is not None
                ports |= self._outputs(self._call(step.path, self.image_encoder, arguments), step.path, step.view)
            elif step.stage == "embed_text":
                assert self.text_encoder is not None
                ports["text_embeddings", step.view] = self._tensor(
                    self._call(step.path, self.text_encoder.embed, arguments), step.path
                )
            elif step.stage == "encode_text":
                assert self.text_encoder is not None
                ports["text_tokens", step.view] = self._tensor(
                    self._call(step.path, self.text_encoder.encode, arguments), step.path
                )
            elif step.stage == "fuse":
                assert self.fusion is not None
                ports |= self._outputs(self._call(step.path, self.fusion, arguments), step.path, step.view)
            elif step.stage == "encode_fused":
                assert self.text_encoder is not None
                ports["fused_text_tokens", step.view] = self._tensor(
                    self._call(step.path, self.text_encoder.encode, arguments), step.path
                )
        return ports

    def _call(self, path: str, part: Callable[..., Any], arguments: dict[str, Tensor]) -> Any:
        """What a part gives; what its code raises comes out with the name of the component."""
        try:
            return part(**arguments)
        except (MedvlpError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            component = self.plan.components[path]
            text = f"{component.label} failed: {describe_error(error)}"
            raise PartFailed(
                Problem(code="MV306", text=text, position=component.position(), details=(self._origin(path),))
            ) from error

    def _origin(self, path: str) -> str:
        component = self.plan.components[path]
        distribution = self.plan.host.components.distribution(component.name) or "no distribution"
        return f"{type(component.spec).declaration.build} from {distribution}"

    def _terms(self, path: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        component = self.plan.components[path]
        declared = ", ".join(component.contract.losses)
        if not isinstance(losses, dict):
            raise self._wrong_output(path, f"{_kind(losses)} of losses", f"a dict with {declared}")
        if set(losses) != set(component.contract.losses):
            raise self._wrong_output(path, f"the losses {', '.join(losses) or '(none)'}", f"{declared}, as its contract declares")
        for term, value in losses.items():
            if not isinstance(value, Tensor) or value.ndim:
                raise self._wrong_output(path, f"{_kind(value)} as the loss {term!r}", "a scalar tensor")
        return {f"{component.slot}.{term}": value for term, value in losses.items()}

    def _outputs(self, output: Any, path: str, view: View | None) -> Ports:
        """Ports from the NamedTuple that a module returned; None fields are ports that it does not give."""
        component = self.plan.components[path]
        if not hasattr(output, "_asdict"):
            raise self._wrong_output(path, _kind(output), f"{component.role.info.output} of medvlp_core.nn.batch")
        found = {port: value for port, value in output._asdict().items() if value is not None}
        gives = component.contract.gives.values()
        missing = [spec.port for spec in gives if spec.dtype != "shape" and spec.view in (None, view) and spec.port not in found]
        if missing:
            text = f"{', '.join(map(str, missing))}, as its contract declares"
            raise self._wrong_output(path, f"only {', '.join(found) or 'nothing'}", text)
        for port, value in found.items():
            if not isinstance(value, Tensor):
                raise self._wrong_output(path, f"{_kind(value)} as {port}", "a tensor")
        return {(port, view): value for port, value in found.items()}

    def _tensor(self, output: Any, path: str) -> Tensor:
        if not isinstance(output, Tensor):
            raise self._wrong_output(path, _kind(output), "a tensor")
        return output

    def _wrong_output(self, path: str, found: str, expected: str) -> SpecError:
        component = self.plan.components[path]
        text = f"{component.label} returned {found}, expected {expected}"
        return SpecError(Problem(code="MV206", text=text, position=component.position(), details=(self._origin(path),)))

    # ------------------------------------------------------------------------------------------------- use after training

    def ports(self, batch: ImageTextBatch, *wanted: PortKey) -> Ports:
        """Compute chosen ports of a batch, e.g. ``("fused_text_tokens", "clean")``, and nothing that they do not need.

        Raises:
            SpecError: the model does not give such a port (MV201).
        """
        keys = [self._key(port, view) for port, view in wanted]
        ports = self._run(self.plan.wiring.route(keys), batch)
        return {key: ports[found] for key, found in zip(wanted, keys, strict=True)}

    def _key(self, port: str, view: Any) -> PortKey:
        key = self.plan.wiring.find(port, view)
        if key is None:
            given = sorted({name for name, _ in self.plan.wiring.providers})
            text = f"this model does not give the port {port}" + (f" in the {view} view" if view else "")
            raise SpecError(Problem(code="MV201", text=text, hint=f"ports of this model: {', '.join(given)}"))
        return key

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Patch and prefix tokens of whole images: (B, C, H, W) to (B, N, Di), (B, P, Di).

        Raises:
            DataError: not normalised float images of the model's size (MV505).
        """
        self.check_image(image)
        found: ImageFeatures = self._part("image_encoder")(image)
        return found

    def encode_text(self, tokens: TokenBatch) -> Tensor:
        """Contextual tokens of whole texts, without any image: (B, L) to (B, L, Dt).

        Raises:
            DataError: the tensors are not a tokenizer's (MV505).
        """
        _check_tokens(*tokens)
        result: Tensor = self._part("text_encoder")(tokens.token_ids, tokens.text_is_valid)
        return result

    def embed_image(self, image: Tensor, *, alignment: str | None = None) -> Tensor:
        """L2-normalised image vectors in the shared space of an alignment (the first one by default): (B, E)."""
        features = self.encode_image(image)
        return self._alignment(alignment).embed_image(features.image_tokens, features.image_prefix)

    def embed_text(self, tokens: TokenBatch, *, alignment: str | None = None) -> Tensor:
        """L2-normalised text vectors in the shared space of an alignment (the first one by default): (B, E)."""
        return self._alignment(alignment).embed_text(self.encode_text(tokens), tokens.text_is_valid, tokens.word_ids)

    def attention_maps(self, batch: ImageTextBatch) -> Tensor | None:
        """Which patches each word looks at, on clean inputs: (B, L, N), from the fusion or the first alignment that can tell."""
        found = self.attention_maps_and_provider(batch)
        return None if found is None else found[0]

    def attention_maps_and_provider(self, batch: ImageTextBatch) -> tuple[Tensor, str] | None:
        """:meth:`attention_maps`, and the path of the part that gave them (``model.fusion``)."""
        parts: dict[str, nn.Module | None] = {"model.fusion": self.fusion}
        parts |= {f"model.alignments.{slot}": module for slot, module in self.alignments.items()}
        for path, module in parts.items():
            if isinstance(module, HasAttentionMaps):
                takes = tuple((argument, self._clean(key)) for argument, key in self.plan.wiring.takes(path, "clean"))
                takes = tuple((argument, key) for argument, key in takes if key in self.plan.wiring.providers)
                ports = self._run(self.plan.wiring.route(key for _, key in takes), batch)
                maps = module.attention_maps(**_arguments(takes, ports))
                if maps is not None:
                    return maps, path
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

    def _clean(self, key: PortKey) -> PortKey:
        return (key[0], "clean") if key[1] == "masked" else key

    def _part(self, name: str) -> nn.Module:
        part: nn.Module | None = getattr(self, name)
        if part is None:
            raise SpecError(Problem(code="MV201", text=f"this model has no {name}"))
        return part

    def _alignment(self, slot: str | None) -> Alignment:
        if not self.alignments:
            raise SpecError(Problem(code="MV201", text="this model has no alignment, so there is no shared space to embed into"))
        if slot is not None and slot not in self.alignments:
            hint = f"alignments of this model: {', '.join(self.alignments)}"
            raise SpecError(Problem(code="MV201", text=f"this model has no alignment {slot!r}", hint=hint))
        found = self.alignments[slot or next(iter(self.alignments))]
        assert isinstance(found, Alignment)
        return found


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_tokens(token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> None:
    for name, tensor, dtype in (
        ("token_ids", token_ids, torch.int64),
        ("text_is_valid", text_is_valid, torch.bool),
        ("word_ids", word_ids, torch.int64),
    ):
        if tensor.dtype != dtype or tensor.ndim != 2 or tensor.shape != token_ids.shape:
            wanted = f"{str(dtype).removeprefix('torch.')} of shape (B, L)"
            text = f"{name} must be {wanted} like token_ids, found {_described(tensor)}"
            raise DataError(Problem(code="MV505", text=text, hint="use what Tokenizer.encode returns"))


def _arguments(takes: Iterable[tuple[str, PortKey]], ports: Ports) -> dict[str, Tensor]:
    return {argument: ports[key] for argument, key in takes}


def _kind(output: Any) -> str:
    """What a module returned, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor ({_described(output)})"
    size = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
    return f"{type(output).__name__}{size}"


def _mask_plan(ports: Ports) -> MaskPlan | None:
    found = {name: ports.get((name, "masked")) for name in MaskPlan._fields}
    return MaskPlan(**found) if all(value is not None for value in found.values()) else None  # type: ignore[arg-type]
