from __future__ import annotations

from itertools import groupby
from pathlib import PurePosixPath

from hypothesis import given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.pairs.budget_order import diverse_order
from acme_rag_pipeline.pairs.passage import Passage


def _passages(sizes: dict[str, int]) -> list[Passage]:
    return [
        Passage(f"{path}#{number}", path, path, (), f"passage {number}")
        for path, size in sizes.items()
        for number in range(size)
    ]


_SIZES = st.dictionaries(
    st.builds(
        lambda folder, name: f"{folder}/{name}.md" if folder else f"{name}.md",
        st.sampled_from(["", "a", "b", "b/c"]),
        st.sampled_from("mnopqrs"),
    ),
    st.integers(1, 9),
    max_size=20,
)


@settings(deadline=None, max_examples=60)
@given(_SIZES)
def test_every_prefix_covers_as_many_documents_as_it_can(sizes: dict[str, int]) -> None:
    ordered = diverse_order(_passages(sizes))
    assert sorted(p.chunk_id for p in ordered) == sorted(p.chunk_id for p in _passages(sizes))
    for length in range(len(ordered) + 1):
        prefix = [p.doc_path for p in ordered[:length]]
        assert len(set(prefix)) == min(length, len(sizes))
        # No document is asked twice as long as another that has passages left was asked less often.
        taken = {path: prefix.count(path) for path in sizes}
        waiting = [taken[path] for path in sizes if taken[path] < sizes[path]]
        assert not waiting or max(taken.values()) <= min(waiting) + 1


@settings(deadline=None, max_examples=60)
@given(_SIZES)
def test_first_documents_come_from_as_many_folders_as_there_are(sizes: dict[str, int]) -> None:
    folders = {str(PurePosixPath(path).parent) for path in sizes}
    first = diverse_order(_passages(sizes))[: len(folders)]
    assert {str(PurePosixPath(p.doc_path).parent) for p in first} == folders


def test_order_within_a_document_is_spread_and_starts_in_the_middle() -> None:
    numbers = [int(p.chunk_id.split("#")[1]) for p in diverse_order(_passages({"a.md": 8}))]
    assert numbers[0] == 4
    assert set(numbers[:3]) == {2, 4, 6}


def test_does_not_depend_on_how_documents_are_interleaved_nor_on_names() -> None:
    sizes = {f"{letter}.md": 2 for letter in "abcdefghij"}
    passages = _passages(sizes)
    by_position = sorted(passages, key=lambda p: p.chunk_id.split("#")[1])
    assert diverse_order(passages) == diverse_order(by_position) == diverse_order(list(reversed(passages))[::-1])
    documents = [path for path, _ in groupby(p.doc_path for p in diverse_order(passages)[:10])]
    assert documents != sorted(documents)


def test_order_of_the_others_stays_when_a_document_is_added() -> None:
    sizes = {f"{letter}.md": 1 for letter in "abcdefghij"}
    before = [p.doc_path for p in diverse_order(_passages(sizes))]
    after = [p.doc_path for p in diverse_order(_passages({**sizes, "new.md": 1}))]
    assert [path for path in after if path != "new.md"] == before


def test_nothing() -> None:
    assert diverse_order([]) == []
