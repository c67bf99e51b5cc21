"""The GPUs that an estimate can be made for, and the shares of their data sheets that training reaches. Light."""

from __future__ import annotations

import attrs

MIB, GIB = 2**20, 2**30


@attrs.frozen(kw_only=True)
class Card:
    """A device as its data sheet has it: dense products without sparsity, memory, and the link to the next one in one direction.

    ``memory`` is what torch can use, in bytes, of which a process takes ``reserved`` first.
    ``matmul_share``, ``memory_share`` and ``link_share`` are what large operations reach of ``half`` and ``full`` (FLOP/s in bf16
    or fp16, and in fp32), ``bandwidth`` and ``link`` (bytes a second); ``host`` is the time that issuing one operation takes.
    ``device_name`` is what torch calls it, without the maker.
    """

    name: str
    about: str
    half: float
    full: float
    memory: float
    bandwidth: float
    link: float
    source: str
    device_name: str = ""
    matmul_share: float = 0.60
    memory_share: float = 0.78
    link_share: float = 0.80
    host: float = 8e-6
    reserved: float = 1.0 * GIB

    @property
    def is_gpu(self) -> bool:
        """Whether it computes while the host goes on."""
        return self.name != "cpu"


def _card(
    name: str, about: str, device_name: str, half: float, full: float, gib: float, bandwidth: float, link: float, source: str
) -> Card:
    """TFLOP/s, GiB and GB/s, as data sheets have them."""
    rates = {"half": half * 1e12, "full": full * 1e12, "bandwidth": bandwidth * 1e9, "link": link * 1e9}
    return Card(name=name, about=about, device_name=device_name, memory=gib * GIB, source=source, **rates)


#: fp32 is without TF32, as torch computes it unless told otherwise. docs/estimate.md says where the shares come from.
CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _card("a100-40", "A100 SXM 40 GB", "A100-SXM4-40GB", 312, 19.5, 39.3, 1555, 300, "NVIDIA A100 data sheet"),
        _card("a100-80", "A100 SXM 80 GB", "A100-SXM4-80GB", 312, 19.5, 79.1, 2039, 300, "NVIDIA A100 data sheet"),
        _card("h100", "H100 SXM 80 GB", "H100 80GB HBM3", 989, 67, 79.1, 3350, 450, "NVIDIA H100 data sheet"),
        _card("h200", "H200 SXM 141 GB", "H200", 989, 67, 139.7, 4800, 450, "NVIDIA H200 data sheet"),
        _card("l40s", "L40S 48 GB", "L40S", 362, 91.6, 44.4, 864, 32, "NVIDIA L40S data sheet; PCIe 4.0 x16"),
        _card(
            "rtx4090",
            "GeForce RTX 4090 24 GB",
            "GeForce RTX 4090",
            165,
            82.6,
            23.5,
            1008,
            32,
            "NVIDIA Ada white paper; PCIe 4.0 x16",
        ),
    )
}

#: GPUs in one machine; beyond them the network is the link: 400 Gbit/s a GPU.
GPUS_OF_A_MACHINE, NETWORK = 8, 50e9

#: What ``--gpu`` takes.
NAMES = (*CARDS, "cpu")


def card_of(device_name: str) -> Card | None:
    """The card that torch names like this; None for all others: slower boards of the same chip, laptops, slices of a GPU.

    Example:
        >>> card_of("NVIDIA H100 80GB HBM3").name, card_of("NVIDIA GeForce RTX 4090").name, card_of("NVIDIA H100 PCIe")
        ('h100', 'rtx4090', None)
    """
    own = device_name.removeprefix("NVIDIA ")
    return next((card for card in CARDS.values() if card.device_name == own), None)
