"""What an estimate needs of torch that torch does not promise to keep. If something is missing, this says so, at import."""

from __future__ import annotations

from typing import Any

import torch

from medvlp_core import MedvlpError, Problem

try:
    from torch._C import _current_autograd_node as current_node
    from torch._C._autograd import _get_sequence_nr as next_sequence_number
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.autograd.graph import _engine_run_backward as run_backward
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_only
    from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

    flash_attention: Any = torch.ops.aten._scaled_dot_product_flash_attention
    efficient_attention: Any = torch.ops.aten._scaled_dot_product_efficient_attention
    cpu_attention: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    cpu_attention_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
except (ImportError, AttributeError) as error:
    text = f"torch {torch.__version__} lacks something by which an estimate follows a step: {error}"
    raise MedvlpError(Problem(code="MV603", text=text, hint="take another version of torch for the estimate")) from error

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "cpu_attention",
    "cpu_attention_backward",
    "current_node",
    "efficient_attention",
    "flash_attention",
    "flop_registry",
    "next_sequence_number",
    "run_backward",
    "sdpa_backward_flop",
    "sdpa_flop",
    "tree_leaves",
    "tree_map_only",
]
