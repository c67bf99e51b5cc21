"""The sums of the example in docs/estimate.md, and of a fresh estimate: the page's test compares words and columns only."""

from __future__ import annotations

import re
from pathlib import Path

import medvlp_bench.estimate.estimate as estimating
import pytest
from medvlp_bench.estimate.cards import CARDS, GIB
from medvlp_bench.estimate.report import lines

import medvlp_core

PAGE = Path(__file__).parents[3] / "docs" / "estimate.md"
GPUS, BATCH, PAIRS, EPOCHS = 8, 256, 370_000, 200
H100 = CARDS["h100"]


def number(text: str) -> float:
    return float(text.strip("%").replace(",", ""))


@pytest.fixture(scope="module", params=["page", "fresh"])
def shown(request: pytest.FixtureRequest) -> list[str]:
    """The lines of the estimate of ``mpma:base`` on 8 H100, as the page has them and as they are now."""
    if request.param == "page":
        [block] = re.findall(
            r"^```console\n\$ medvlp estimate mpma:base (.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
        )
        return block.splitlines()
    return list(lines(estimating.estimate(medvlp_core.plan("mpma:base"), H100, GPUS, PAIRS)))


def rows_below(shown: list[str], start: str) -> dict[str, list[float]]:
    """Rows of a table by name: name and numbers stand two spaces apart."""
    first = next(index for index, line in enumerate(shown) if line.strip().startswith(start))
    cells = [re.split(r"  +", line.strip()) for line in shown[first + 1 :]]
    end = next(index for index, row in enumerate(cells) if row == [""]) if [""] in cells else len(cells)
    return {name: [number(one) for one in rest] for name, *rest in cells[:end] if rest and re.fullmatch(r"[\d,.]+%?", rest[0])}


def test_components_add_up(shown: list[str]) -> None:
    table = rows_below(shown, "component")
    whole = table.pop("total")
    columns = list(zip(*table.values(), strict=True))
    assert [sum(columns[0]), sum(columns[1])] == whole[:2]
    for place, ends, step in ((2, 2, 0.005), (3, 3, 0.005), (5, 4, 0.05), (6, 5, 0.05)):
        assert sum(columns[place]) == pytest.approx(whole[ends], abs=step * (len(table) + 1))
    assert sum(columns[4]) == pytest.approx(100.0, abs=0.05 * (len(table) + 1))
    operations = [forward + backward for forward, backward in zip(columns[2], columns[3], strict=True)]
    assert [100 * one / sum(operations) for one in operations] == pytest.approx(columns[4], abs=0.15)
    # a product has two gradients: as many operations again, twice
    assert all(backward == pytest.approx(2 * forward, rel=0.1, abs=0.02) for forward, backward in zip(*columns[2:4], strict=True))
    assert table["model.image_encoder"][0] + table["model.image_encoder"][1] == 85_798_656  # ViT-B/16 without its classifier


def test_memory_follows_from_the_weights(shown: list[str]) -> None:
    trained, frozen = rows_below(shown, "component")["total"][:2]
    memory = {name: value for name, (value,) in rows_below(shown, "memory of each GPU").items()}
    assert memory["weights"] == pytest.approx(4 * (trained + frozen) / GIB, abs=0.01)
    assert memory["optimiser"] == pytest.approx(2 * 4 * trained / GIB, abs=0.01)
    assert memory["of these gradients"] == pytest.approx(4 * trained / GIB, abs=0.01)
    kept = rows_below(shown, "component")["total"][4] / 1024
    assert memory["of these kept for backward"] == pytest.approx(kept, abs=0.01)
    peak, inside = memory["activations and gradients, peak"], ("of these gradients", "of these kept for backward")
    assert peak > sum(memory[name] for name in inside)
    parts = [value for name, value in memory.items() if name not in (*inside, "total", "there is")]
    assert memory["total"] == pytest.approx(sum(parts), abs=0.005 * (len(parts) + 1))
    assert memory["there is"] == pytest.approx(H100.memory / GIB, abs=0.05)


def test_times_follow_from_the_card(shown: list[str]) -> None:
    component = rows_below(shown, "component")["total"]
    times = rows_below(shown, "time of a step, ms")
    by_name = {re.sub(r"\d[\d,.]*", "N", name): value for name, (value,) in times.items()}
    issued = next(number(found) for found in re.findall(r"issuing ([\d,]+) operations", "\n".join(shown)))
    assert by_name["issuing N operations"] == pytest.approx(1e3 * issued * H100.host, abs=0.05)
    assert by_name["forward"] + by_name["backward"] == pytest.approx(component[5], abs=0.15)
    sent = 2 * (GPUS - 1) / GPUS * 4 * component[0]
    assert by_name["exchange of N GiB, beside it"] == pytest.approx(1e3 * sent / (H100.link * H100.link_share), abs=0.1)
    device = by_name["forward"] + max(by_name["backward"], by_name["exchange of N GiB, beside it"]) + by_name["optimiser"]
    assert by_name["a step"] == pytest.approx(max(device, by_name["issuing N operations"]), abs=0.15)


def test_the_run_follows_from_a_step(shown: list[str]) -> None:
    text = "\n".join(shown)
    step = rows_below(shown, "time of a step, ms")["a step"][0] / 1e3
    pairs, share = re.findall(r"([\d,]+) pairs/s, if data come as fast; (\d+)% of the data sheet's", text)[0]
    assert number(pairs) == pytest.approx(BATCH / step, rel=0.01)
    forward, backward = rows_below(shown, "component")["total"][2:4]
    assert number(share) == pytest.approx(100 * (forward + backward) * 1e12 / GPUS / step / H100.half, abs=1.0)
    found = re.findall(r"the run: (\d+) epochs of ([\d,]+) pairs are ([\d,]+) steps, ([\d.]+) hours", text)[0]
    epochs, all_pairs, steps, hours = map(number, found)
    assert (epochs, all_pairs, steps) == (EPOCHS, PAIRS, EPOCHS * (PAIRS // BATCH))
    assert hours == pytest.approx(steps * step / 3600, abs=0.06)
