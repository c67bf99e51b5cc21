"""The pairs of every step, and their shares: functions of a few numbers."""

from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_core.data.order import DataOrder, Draw, Share, seed_of

SIZES = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(count=SIZES, batch_size=SIZES, drop_last=st.booleans(), least=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_an_epoch_holds_every_pair_at_most_once(count: int, batch_size: int, drop_last: bool, least: int, seed: int) -> None:
    order = DataOrder(count=count, batch_size=batch_size, seed=seed, drop_last=drop_last, least=least)
    steps = order.steps_per_epoch
    for epoch in (0, 2):
        pairs = [order.pairs(epoch * steps + at) for at in range(steps)]
        seen = [draw.row for one in pairs for draw in one]
        left = count % batch_size
        kept = left if not drop_last and left >= least else 0
        assert len(set(seen)) == len(seen) == count - left + kept
        assert [len(one) for one in pairs] == [order.size(epoch * steps + at) for at in range(steps)]
        assert all(order.epoch(epoch * steps + at) == epoch for at in range(steps))


@settings(deadline=None, max_examples=60)
@given(count=SIZES, world=st.integers(1, 5), parts=st.integers(1, 4))
def test_shares_are_a_partition_of_even_sizes(count: int, world: int, parts: int) -> None:
    pairs = [Draw(index, 0) for index in range(count)]
    shares = [Share(rank=rank, world=world, micro_batches=parts).of(pairs) for rank in range(world)]
    assert [pair for part in range(parts) for share in shares for pair in share[part]] == pairs
    sizes = {len(part) for share in shares for part in share}
    assert max(sizes) - min(sizes) <= 1


def test_a_pair_has_another_crop_in_each_epoch_and_the_same_one_when_asked_again() -> None:
    order = DataOrder(count=8, batch_size=4, seed=0)
    seeds = [{draw.row: draw.seed for at in (0, 1) for draw in order.pairs(2 * epoch + at)} for epoch in range(3)]
    assert len({seeds[epoch][5] for epoch in range(3)}) == 3
    assert order.pairs(3) == DataOrder(count=8, batch_size=4, seed=0).pairs(3)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert seed_of("masks", 0, 0, 0) == 1_717_994_293_549_830_514
    assert 0 <= seed_of("masks", 2**40, 3) < 2**63


def test_purposes_share_no_seed() -> None:
    crops = {draw.seed for at in range(4) for draw in DataOrder(count=8, batch_size=4, seed=0).pairs(at)}
    assert not crops & {seed_of("masks", 0, step, rank) for step in range(8) for rank in range(8)}
