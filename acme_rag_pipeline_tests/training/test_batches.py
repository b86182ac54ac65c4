"""Batches: every row once, no group twice in one batch, decided by the seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.training.batches import epoch_batches


@given(
    groups=st.lists(st.sampled_from("abcdefgh"), min_size=0, max_size=60),
    size=st.integers(2, 9),
    seed=st.integers(0, 5),
)
def test_a_group_stands_in_a_batch_once(groups: list[str], size: int, seed: int) -> None:
    lengths = [len(group) * 3 + i % 7 for i, group in enumerate(groups)]
    batches = epoch_batches(groups, lengths, size, seed)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == len(set(rows))
    for batch in batches:
        assert 2 <= len(batch) <= size
        assert len({groups[row] for row in batch}) == len(batch)
    assert batches == epoch_batches(groups, lengths, size, seed)


def test_distinct_groups_lose_no_row_but_a_lonely_last_one() -> None:
    groups = [str(i) for i in range(65)]
    rows = {row for batch in epoch_batches(groups, [1] * 65, 8, seed=1) for row in batch}
    assert len(rows) >= 64


def test_another_seed_gives_another_order() -> None:
    groups = [str(i) for i in range(64)]
    assert epoch_batches(groups, [1] * 64, 8, 0) != epoch_batches(groups, [1] * 64, 8, 1)
