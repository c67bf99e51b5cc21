"""Every configuration of the tables as a case for the compile gate, as ``launch.py`` would launch it for contiguous tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medvlp_mpma.kernels.compile_gate import Case
from medvlp_mpma.kernels.memory_attention import tuning

MODULE = "medvlp_mpma.kernels.memory_attention.triton_kernel"
KEY_STRIDES = ("q_b", "q_l", "q_h", "k_b", "k_s", "k_h", "v_b", "v_s", "v_h")
SLOT_STRIDES = ("mem_k_m", "mem_k_h", "mem_v_m", "mem_v_h")

#: Arguments by kernel: large tensors, float32 tensors, strides, counts, numbers; and the switches (HAS_...) that it has.
ARGUMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "forward_kernel": {
        "large": ("q", "k", "v", "mem_k", "mem_v", "out"),
        "float32": ("lse",),
        "strides": (*KEY_STRIDES, *SLOT_STRIDES),
        "counts": ("H", "L", "S", "M", "level"),
        "numbers": ("scale_log2", "keep_factor"),
        "switches": ("KEY_LENS", "KEY_MASK", "QUERY_LENS", "BIAS", "THRESHOLD", "DROPOUT"),
    },
    "grad_query_kernel": {
        "large": ("q", "k", "v", "mem_k", "mem_v", "out", "grad_out", "grad_q", "grad_k", "grad_v"),
        "float32": ("lse", "delta"),
        "strides": (*KEY_STRIDES, *SLOT_STRIDES),
        "counts": ("H", "L", "S", "M", "level"),
        "numbers": ("scale", "keep_factor"),
        "switches": ("KEY_LENS", "KEY_MASK", "QUERY_LENS", "BIAS", "THRESHOLD", "DROPOUT", "GRAD_LSE"),
    },
    "grad_key_kernel": {
        "large": ("q", "k", "v", "grad_out", "grad_k", "grad_v"),
        "float32": ("lse", "delta"),
        "strides": KEY_STRIDES,
        "counts": ("H", "L", "S", "level"),
        "numbers": ("scale", "keep_factor"),
        "switches": ("KEY_LENS", "KEY_MASK", "QUERY_LENS", "DROPOUT"),
    },
    "grad_slot_kernel": {
        "large": ("q", "mem_k", "mem_v", "grad_out"),
        "float32": ("lse", "delta", "partial_k", "partial_v", "partial_bias"),
        "strides": ("q_b", "q_l", "q_h", *SLOT_STRIDES),
        "counts": ("H", "L", "S", "M", "rows", "rows_per_split", "level"),
        "numbers": ("scale", "keep_factor"),
        "switches": ("BIAS", "THRESHOLD", "DROPOUT"),
    },
}

#: What a switch needs when it is on: the pointer and its type.
POINTERS = {
    "KEY_LENS": ("key_lens", "*i32"),
    "KEY_MASK": ("key_is_valid", "*u8"),
    "QUERY_LENS": ("query_lens", "*i64"),
    "BIAS": ("mem_bias", "*fp32"),
    "THRESHOLD": ("threshold", "*fp32"),
    "DROPOUT": ("seed", "*i64"),
    "GRAD_LSE": ("grad_lse", "*fp32"),
}

#: What is on: nothing; what training with top-k has on; everything. Compilers are erratic, and any may spill where others do not.
NOTHING: frozenset[str] = frozenset()
TOPK_TRAINING = frozenset({"THRESHOLD", "DROPOUT"})
EVERYTHING = frozenset(POINTERS)


def cases(arch: int) -> Iterator[Case]:
    """Every rule of an architecture's table, at its widest heads: plain, for top-k training, with everything on.

    Padded heads, and heads of half the width, are covered for top-k training.
    """
    for rule_kernel, rules in tuning.rules(f"sm_{arch}").items():
        for rule in rules:
            kind, width = "bf16" if rule["bits"] == 16 else "fp32", rule["head_width"]
            for on in (NOTHING, TOPK_TRAINING, EVERYTHING):
                yield case(rule_kernel, rule, kind, width, on, arch)
            for narrower in (width - 8, width // 2):
                yield case(rule_kernel, rule, kind, narrower, TOPK_TRAINING, arch)
            if kind == "bf16":
                yield case(rule_kernel, rule, "fp16", width, EVERYTHING, arch)


def case(rule_kernel: str, rule: dict[str, int], kind: str, width: int, on: frozenset[str], arch: int) -> Case:
    """One rule with some switches on; ``grad_query_with_keys`` is a switch of ``grad_query_kernel``."""
    kernel = f"{rule_kernel.removesuffix('_with_keys')}_kernel"
    arguments, tiles = ARGUMENTS[kernel], tuning.tiles_of(rule, width)
    types = dict.fromkeys(arguments["large"], f"*{kind}") | dict.fromkeys(arguments["float32"], "*fp32")
    types |= dict.fromkeys((*arguments["strides"], *arguments["counts"]), "i32") | dict.fromkeys(arguments["numbers"], "fp32")
    constants: dict[str, Any] = {"WIDTH": width, **tiles.blocks()}
    for switch in arguments["switches"]:
        name, pointer = POINTERS[switch]
        constants[f"HAS_{switch}"] = switch in on
        if switch in on:
            types[name] = pointer
        else:
            constants[name] = None
    if kernel == "grad_query_kernel":
        constants["WITH_KEYS"] = rule_kernel != "grad_query"
    return Case(
        kernel=f"{MODULE}:{kernel}",
        signature=types,
        constants=constants,
        warps=tiles.warps,
        stages=tiles.stages,
        arch=arch,
        divisible=arguments["strides"] if width % 16 == 0 else (),
    )
