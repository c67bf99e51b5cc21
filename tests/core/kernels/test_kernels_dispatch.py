"""The choice between the backends of an op: whose request counts, who can serve, and that a fallback is said once."""

from __future__ import annotations

import itertools
import logging
import re
from typing import Any

import attrs
import pytest

from medvlp_core.errors import KernelError, PluginError
from medvlp_core.kernels.dispatch import Backend, Call, Kernel, requested_backend
from medvlp_core.plugins.registry import PluginKernels
from medvlp_core.spec.kernel import KernelOp

NUMBERS = itertools.count()
CPU, GPU = Call("cpu", "float32", (("M", 40),)), Call("cuda", "bfloat16", (("M", 40),))


def needs_gpu(call: Call) -> tuple[str, ...]:
    found = () if call.device == "cuda" else (f"{call.device} is not a GPU",)
    return (*found, *(("more than 64 slots",) if call["M"] > 64 else ()))


def serves(call: Call) -> tuple[str, ...]:
    return ()


def make_kernel(**changes: Any) -> Kernel:
    """An op of three paths, under a name of its own: what is said once is said once per process."""
    kernel = Kernel(
        name=f"acme.gate_{next(NUMBERS)}",
        backends=(
            Backend(name="triton", unsupported_reasons=needs_gpu),
            Backend(name="composite", unsupported_reasons=serves),
            Backend(name="reference", unsupported_reasons=serves),
        ),
        order=lambda call: ("triton", "composite"),
    )
    return attrs.evolve(kernel, **changes)


# --------------------------------------------------------------------------------------------------------- whose request counts


@pytest.mark.parametrize(
    ("explicit", "variable", "counts"),
    [
        ("auto", None, "auto"),
        ("auto", "composite", "composite"),
        ("reference", "composite", "reference"),
        ("auto", "auto", "auto"),
        ("triton", "fast", "triton"),
    ],
)
def test_the_callers_own_request_comes_before_the_variable(
    monkeypatch: pytest.MonkeyPatch, explicit: str, variable: str | None, counts: str
) -> None:
    monkeypatch.delenv("MEDVLP_KERNELS", raising=False)
    if variable is not None:
        monkeypatch.setenv("MEDVLP_KERNELS", variable)
    assert requested_backend(explicit) == counts


def test_an_unknown_request_names_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_KERNELS", "tritn")
    with pytest.raises(KernelError) as caught:
        requested_backend()
    assert str(caught.value).splitlines() == [
        "[MV401] MEDVLP_KERNELS=tritn: no such kernel backend",
        "    hint: did you mean 'triton'? other backends: auto, composite, reference",
    ]
    with pytest.raises(KernelError, match=re.escape("[MV401] 'eager': no such kernel backend")):
        requested_backend("eager")


# ------------------------------------------------------------------------------------------------------------------ who serves


@pytest.mark.parametrize(
    ("requested", "call", "backend"),
    [
        ("auto", CPU, "composite"),
        ("auto", GPU, "triton"),
        ("triton", GPU, "triton"),
        ("composite", GPU, "composite"),
        ("reference", CPU, "reference"),
    ],
)
def test_a_path_that_can_serve_is_taken(requested: str, call: Call, backend: str) -> None:
    kernel = make_kernel()
    assert kernel.select(requested, call) == kernel.preview(requested, call) == backend


def test_reasons_are_those_of_each_path_for_the_call() -> None:
    kernel = make_kernel()
    wide = attrs.evolve(CPU, sizes=(("M", 65),))
    assert kernel.reasons(GPU) == {"triton": (), "composite": (), "reference": ()}
    assert kernel.reasons(wide)["triton"] == ("cpu is not a GPU", "more than 64 slots")


def test_a_named_path_that_cannot_serve_is_an_error_with_its_reasons() -> None:
    kernel = make_kernel()
    for choose in (kernel.select, kernel.preview):
        with pytest.raises(KernelError) as caught:
            choose("triton", CPU)
        assert str(caught.value).splitlines() == [
            f"[MV401] {kernel.name}: the backend 'triton' was requested and cannot serve this call",
            "    cpu is not a GPU",
            "    hint: backends that can: composite, reference; or leave the choice to 'auto'",
        ]


def test_a_path_that_the_op_lacks_is_an_error() -> None:
    kernel = make_kernel(backends=(Backend(name="composite", unsupported_reasons=serves),), order=lambda call: ("composite",))
    with pytest.raises(KernelError) as caught:
        kernel.select("triton", GPU)
    assert str(caught.value) == f"[MV401] {kernel.name} has no backend 'triton'\n    hint: backends: composite"


def test_auto_without_a_path_that_can_serve_is_an_error() -> None:
    kernel = make_kernel(order=lambda call: ("triton",))
    with pytest.raises(KernelError) as caught:
        kernel.select("auto", CPU)
    assert str(caught.value).splitlines() == [
        f"[MV401] {kernel.name}: 'auto' has no backend that can serve this call",
        "    triton: cpu is not a GPU",
        "    hint: backends that can: composite, reference",
    ]


def test_the_choice_for_equal_calls_is_computed_once() -> None:
    asked: list[Call] = []

    def unsupported_reasons(call: Call) -> tuple[str, ...]:
        asked.append(call)
        return ()

    kernel = make_kernel(
        backends=(Backend(name="composite", unsupported_reasons=unsupported_reasons),), order=lambda call: ("composite",)
    )
    for _ in range(3):
        assert kernel.select("auto", Call("cpu", "float32", (("M", 1),))) == "composite"
    kernel.select("auto", Call("cpu", "float32", (("M", 2),)))
    assert [call["M"] for call in asked] == [1, 2]
    twin = attrs.evolve(kernel)
    twin.select("auto", Call("cpu", "float32", (("M", 1),)))
    assert [call["M"] for call in asked] == [1, 2, 1], "another kernel asks for itself"


# ------------------------------------------------------------------------------------------------------------- what is said


def test_a_fallback_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    kernel = make_kernel()
    with caplog.at_level(logging.WARNING, logger="medvlp.kernels"):
        kernel.preview("auto", CPU)
        assert caplog.messages == []
        for slots in (40, 41, 40):
            kernel.select("auto", attrs.evolve(CPU, sizes=(("M", slots),)))
    assert caplog.messages == [f"{kernel.name} on cpu: the backend composite serves (triton: cpu is not a GPU)"]
    kernel.select("auto", attrs.evolve(GPU, sizes=(("M", 65),)))
    assert caplog.messages[1:] == [f"{kernel.name} on cuda: the backend composite serves (triton: more than 64 slots)"]


def test_nothing_is_said_where_the_best_path_serves_or_one_was_named(caplog: pytest.LogCaptureFixture) -> None:
    kernel = make_kernel()
    with caplog.at_level(logging.DEBUG, logger="medvlp.kernels"):
        kernel.select("auto", GPU)
        kernel.select("composite", CPU)
        kernel.select("reference", CPU)
    assert caplog.messages == []


# --------------------------------------------------------------------------------------------------------------- declarations


def test_paths_have_the_names_that_can_be_asked_for() -> None:
    for name in ("auto", "cuda"):
        with pytest.raises(ValueError, match="'name' must be in"):
            Backend(name=name, unsupported_reasons=serves)


def test_ops_are_kept_by_name_and_belong_to_the_namespace() -> None:
    registry = PluginKernels("acme")
    for name in ("acme.b", "acme.a"):
        registry.add(KernelOp(name=name, summary="a gate", build="acme.gate:KERNEL"))
    assert [op.name for op in registry] == ["acme.a", "acme.b"]
    with pytest.raises(PluginError, match=re.escape("[MV302] the kernel 'acme.a' is registered twice")):
        registry.add(KernelOp(name="acme.a", summary="another", build="acme.gate:OTHER"))
    with pytest.raises(PluginError, match=re.escape("name it 'acme.gate', or rename the entry point")):
        registry.add(KernelOp(name="other.gate", summary="a gate", build="acme.gate:KERNEL"))
    with pytest.raises(PluginError, match=r"'acme\.c' is not a KernelOp"):
        registry.add("acme.c")  # type: ignore[arg-type]
    assert [op.name for op in registry] == ["acme.a", "acme.b"]
