"""Alignments over several processes: two give what one gives with all pairs, and memory grows with their number alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from medvlp_mpma.alignment import GlobalLocal
from medvlp_mpma.specs import GlobalLocalSpec
from medvlp_standard.alignment.gloria import Gloria
from medvlp_standard.alignment.info_nce import InfoNce
from medvlp_standard.alignment.mgca import Mgca
from medvlp_standard.alignment.siglip import SigLip, sigmoid_pair_loss
from medvlp_standard.specs.alignment import GloriaSpec, InfoNceSpec, MgcaSpec, SigLipSpec
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from medvlp_core.nn.contrastive import gloria_loss, symmetric_info_nce
from medvlp_core.runtime.distributed import local_only
from medvlp_core.spec.component import ComponentSpec

BUILT_BY: dict[type, Any] = {
    InfoNceSpec: InfoNce,
    SigLipSpec: SigLip,
    GloriaSpec: Gloria,
    MgcaSpec: Mgca,
    GlobalLocalSpec: GlobalLocal,
}
MLP = {"dim": 5, "projection": "mlp", "view": "masked"}
SPECS: dict[str, ComponentSpec] = {
    "info_nce": InfoNceSpec(dim=5),
    "info_nce, equal texts": InfoNceSpec(**MLP, same_text="ignore"),
    "siglip": SigLipSpec(dim=5, initial_bias=-2.0),
    "siglip, equal texts": SigLipSpec(**MLP, same_text="ignore"),
    "gloria": GloriaSpec(dim=5),
    "gloria, pieces": GloriaSpec(**MLP, aggregate_words=False),
    "mgca": MgcaSpec(dim=5),
    "mgca, pieces": MgcaSpec(dim=5, projection="linear", aggregate_words=False, view="masked"),
    "gla": GlobalLocalSpec(dim=5, same_word="ignore"),
    "gla, gloria, equal texts": GlobalLocalSpec(dim=5, local_kind="gloria", same_text="ignore"),
}
#: Pairs of each process. Reports 1 and 5 have no words, so with 5 + 1 the second process has none at all.
SHARES = {"3 + 3": (3, 3), "3 + 2": (3, 2), "5 + 1": (5, 1)}
#: torch.compile takes seconds for each.
COMPILED = ("siglip, equal texts", "gla, gloria, equal texts")
LENGTH = 7


def alignment(spec: ComponentSpec) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = BUILT_BY[type(spec)](spec, {"Di": 6, "Dt": 8, "P": 1})
    return module.double()


def pairs(spec: ComponentSpec) -> dict[str, Tensor]:
    """Six pairs; reports 0 and 4 are equal, 2 and 3 as well, 1 and 5 have no words. A word of report 0 is hidden."""
    generator = torch.Generator().manual_seed(1)
    words = torch.tensor([4, 0, 5, 5, 4, 0])
    place = torch.arange(LENGTH)
    is_word = (place > 0) & (place <= words.unsqueeze(1))
    word_ids = ((place - 1) // 2).expand(6, -1).masked_fill(~is_word, -1)
    is_masked = torch.zeros(6, LENGTH, dtype=torch.bool)
    is_masked[0, 1] = True
    ids = torch.randint(4, 7, (6, LENGTH), generator=generator)
    ids[4], ids[3] = ids[0], ids[2]
    given = {
        "image_tokens": torch.randn(6, 4, 6, generator=generator, dtype=torch.float64),
        "text_tokens": torch.randn(6, LENGTH, 8, generator=generator, dtype=torch.float64),
        "text_is_valid": place <= words.unsqueeze(1),
        "word_ids": word_ids,
        "text_is_masked": is_masked,
        "token_ids": ids,
    }
    needed = spec.calls()["forward"].needs
    return {name: value for name, value in given.items() if name in needed}


def share_of(given: dict[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    """Some of the pairs, as long as the longest report among them, as a batch would be."""
    longest = int(given["text_is_valid"][first : first + count].sum(dim=1).max())
    part = {name: value[first : first + count] for name, value in given.items()}
    return {name: value if name == "image_tokens" else value[:, :longest] for name, value in part.items()}


def step(forward: nn.Module, given: dict[str, Tensor], weight: float) -> dict[str, Any]:
    """Losses, and gradients of inputs and parameters, as the training loop computes them."""
    leaves = {name: value.clone().requires_grad_() for name, value in given.items() if value.is_floating_point()}
    forward.zero_grad()
    losses = forward(**{**given, **leaves}).losses
    total = sum(factor * loss for factor, loss in zip((1.0, 0.3), losses.values(), strict=False))
    assert isinstance(total, Tensor)
    (total * weight).backward()
    return {
        "losses": {name: loss.detach() for name, loss in losses.items()},
        "inputs": {name: leaf.grad for name, leaf in leaves.items()},
        "parameters": {name.removeprefix("module."): value.grad.clone() for name, value in forward.named_parameters()},
    }


def one_of_two(rank: int, folder: Path) -> None:
    """All cases, in one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    found = {}
    for name, spec in SPECS.items():
        for label, counts in SHARES.items():
            forward = DistributedDataParallel(alignment(spec))
            given = share_of(pairs(spec), sum(counts[:rank]), counts[rank])
            found[name, label] = step(forward, given, counts[rank] * 2 / sum(counts))
        module, given = alignment(spec), share_of(pairs(spec), 2 * rank, 2)
        with local_only():
            found[name, "alone"] = step(module, given, 1.0)
        found[name, "together"] = step(module, given, 1.0)
        if name in COMPILED:
            compiled: Any = torch.compile(module, backend="eager")
            found[name, "compiled"] = step(compiled, given, 1.0)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_two, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("label", SHARES)
@pytest.mark.parametrize("name", SPECS)
def test_two_processes_give_what_one_gives_with_all_pairs(name: str, label: str, found: list) -> None:
    counts = SHARES[label]
    given = {key: value[: sum(counts)] for key, value in pairs(SPECS[name]).items()}
    wanted = step(alignment(SPECS[name]), given, 1.0)
    close = {"rtol": 1e-9, "atol": 1e-12}
    for key, loss in wanted["losses"].items():
        mean = sum(count * one[name, label]["losses"][key] for count, one in zip(counts, found, strict=True)) / sum(counts)
        torch.testing.assert_close(mean, loss, **close)
    for one in found:
        torch.testing.assert_close(one[name, label]["parameters"], wanted["parameters"], **close)
    for key, gradient in wanted["inputs"].items():
        for one, part in zip(found, gradient.split(counts), strict=True):
            mine = one[name, label]["inputs"][key] / 2  # DistributedDataParallel averages what comes before it likewise
            torch.testing.assert_close(mine, part[:, : mine.shape[1]], **close)


@pytest.mark.parametrize("name", SPECS)
def test_alone_a_process_sees_its_own_pairs(name: str, found: list) -> None:
    for rank, one in enumerate(found):
        wanted = step(alignment(SPECS[name]), share_of(pairs(SPECS[name]), 2 * rank, 2), 1.0)
        torch.testing.assert_close(one[name, "alone"], wanted, rtol=0, atol=0)
        assert one[name, "together"]["losses"]["global"] != wanted["losses"]["global"]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_losses_of_several_processes_are_the_same(name: str, found: list) -> None:
    for one in found:
        assert one[name, "compiled"]["losses"] == one[name, "together"]["losses"]


# ------------------------------------------------------------------------------------------------------------------ memory


class Memory(TorchDispatchMode):
    """The largest tensor that an op makes, and the most bytes that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = op(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self._living = {key: one for key, one in self._living.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return made


@contextmanager
def processes(count: int) -> Iterator[None]:
    """As if in the first of several processes, all of which have the same pairs."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


B, N, L, E = 32, 4, 5, 4
SIZES = {"image": (B, E), "text": (B, E), "patches": (B, N, E), "words": (B, L, E)}


def memory_of(loss: str, world: int) -> Memory:
    torch.manual_seed(0)
    image, text, patches, words = (torch.randn(size, requires_grad=True) for size in SIZES.values())
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    with processes(world), Memory() as memory:
        if loss == "info_nce":
            value = symmetric_info_nce(image, text, scale)
        elif loss == "siglip":
            value = sigmoid_pair_loss(image, text, scale, bias)
        else:
            is_word = torch.ones(B, L, dtype=torch.bool)
            value = gloria_loss(patches, words, is_word, attention_scale=4.0, word_scale=5.0, logit_scale=10.0)
        value.backward()
    return memory


#: Bytes of the largest tensor in float32, of T = B * world texts. The square would be 4 T T.
LARGEST = {
    "info_nce": lambda texts: 4 * B * texts,
    "siglip": lambda texts: 4 * max(B * B, texts * E),
    "gloria": lambda texts: 4 * max(B * B * L * max(N, E), texts * L * E, B * texts),
}


@pytest.mark.parametrize("loss", LARGEST)
def test_memory_grows_with_the_number_of_processes_and_not_its_square(loss: str) -> None:
    found = {world: memory_of(loss, world) for world in (2, 8, 32, 64)}
    for world, memory in found.items():
        print(f"{loss} {world:3} processes: largest tensor {memory.largest:9,} bytes, peak {memory.peak:10,}")
        assert memory.largest == LARGEST[loss](B * world)
    # No more than twice for twice the processes.
    assert found[64].peak < 2 * found[32].peak
