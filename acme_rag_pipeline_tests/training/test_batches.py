"""Batches: every row once, no group twice in one batch, decided by the seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.training.batches import epoch_batches, query_batches


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


def test_distinct_groups_lose_no_row() -> None:
    groups = [str(i) for i in range(65)]
    batches = epoch_batches(groups, [1] * 65, 8, seed=1)
    assert {row for batch in batches for row in batch} == set(range(65))
    assert min(map(len, batches)) == 2, "the last one is not alone"


def test_a_large_group_is_shown_in_turns() -> None:
    groups = ["template"] * 120 + [str(i) for i in range(80)]
    lengths = [100 + i for i in range(200)]
    shown: set[int] = set()
    for seed in range(20):
        batches = epoch_batches(groups, lengths, 32, seed)
        rows = {row for batch in batches for row in batch}
        assert rows >= set(range(120, 200)), "those that repeat nothing are shown in every epoch"
        shown |= rows
    assert len(shown) > 130


def test_passages_that_are_no_negatives_of_each_other_may_stand_alone_and_beside_their_like() -> None:
    queries_of = {passage: [2 * passage, 2 * passage + 1] for passage in range(9)}
    batches = query_batches(queries_of, None, dict.fromkeys(queries_of, 1), 4, seed=0)
    assert sorted(query for batch in batches for query in batch) == list(range(18))
    assert sorted(map(len, batches)) == [2, 8, 8]


def test_another_seed_gives_another_order() -> None:
    groups = [str(i) for i in range(64)]
    assert epoch_batches(groups, [1] * 64, 8, 0) != epoch_batches(groups, [1] * 64, 8, 1)
