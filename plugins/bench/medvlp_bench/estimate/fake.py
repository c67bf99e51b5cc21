"""A model whose weights hold no numbers, and what a GPU does otherwise than the CPU that plays it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medvlp_bench.estimate.inside_torch import FakeTensor, FakeTensorMode, efficient_attention, flash_attention, tree_map_only
from medvlp_core.model import ComposedModel
from medvlp_core.nn import Batch

HALF = (torch.float16, torch.bfloat16)


def fake_model(model: ComposedModel) -> ComposedModel:
    """The model with weights and buffers that hold no numbers, in place; whole numbers stay (positions, tables of ids)."""
    fake = FakeTensorMode()
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, value in tensors.items():
                if value is not None and value.is_floating_point():
                    tensors[name] = fake.from_tensor(value)  # type: ignore[assignment]
    return model


def fake_mode_of(model: nn.Module) -> FakeTensorMode:
    """The mode that a model's weights belong to."""
    return next(value.fake_mode for value in model.parameters() if isinstance(value, FakeTensor))


def fake_batch(batch: Batch, model: nn.Module) -> Batch:
    """The batch with images that hold no numbers; ids and masks stay real."""
    fake = fake_mode_of(model)
    return {name: fake.from_tensor(value) if value.is_floating_point() else value for name, value in batch.items()}


def processes(world: int) -> dict[str, Any]:
    """Functions of ``torch.distributed`` for processes that have all what this one has. What they gather has its true size."""

    def all_gather(parts: list[Tensor], own: Tensor) -> None:
        if not isinstance(own, FakeTensor):
            torch._foreach_copy_(parts, [own] * len(parts))

    return {
        "is_initialized": lambda: True,
        "get_world_size": lambda: world,
        "get_rank": lambda: 0,
        "all_gather": all_gather,
        "all_reduce": lambda values, operation=None: None,
    }


class GpuFunctions(TorchFunctionMode):
    """What a GPU does otherwise than a CPU: fused attention also with dropout, and its autocast's operations in fp32."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace attention, widen the inputs of what autocast keeps in fp32; all else as it is."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].dim() == 4:
            return self._attention(*args, **kwargs)
        if func in _IN_FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu") and self.dtype is not None:
            query, key, value = (x.to(self.dtype) for x in (query, key, value))
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
        if attn_mask is None and query.dtype in HALF:
            return flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        return efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


_IN_FP32 = frozenset(
    {
        *(F.layer_norm, F.group_norm, F.normalize, F.cosine_similarity, F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss),
        *(F.smooth_l1_loss, F.binary_cross_entropy_with_logits, F.softmax, F.log_softmax, F.softplus),
        *(torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow, torch.rsqrt, torch.sum, torch.cumsum, torch.norm),
        *(Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.rsqrt, Tensor.sum, Tensor.cumsum),
        *(Tensor.norm, Tensor.__pow__, torch.logsumexp, Tensor.logsumexp),
    }
)
