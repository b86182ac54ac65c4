"""Fusion: what each method does with ties, ranges and gaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.retrieval.fusion import convex_combination, fuse, reciprocal_rank_fusion
from acme_rag_pipeline.setting_groups import RetrievalSettings

scores = st.lists(st.floats(-1, 1, allow_nan=False, width=32), max_size=20, unique=True)


def ranking(values: list[float], prefix: str = "") -> list[tuple[str, float]]:
    return [(f"{prefix}{i}", value) for i, value in enumerate(sorted(values, reverse=True))]


def test_a_clear_dense_lead_survives_words_that_match_by_chance() -> None:
    dense = [("right", 0.8), ("near", 0.4), ("far", 0.2)]
    lexical = [("chance", 3.0), ("far", 2.9)]
    assert fuse(dense, lexical, RetrievalSettings())[0][0] == "right"
    assert reciprocal_rank_fusion([["right", "near", "far"], ["chance", "far"]])[0][0] == "far"


@given(scores, st.floats(0.1, 10), st.floats(-5, 5))
def test_the_range_of_a_models_cosines_does_not_matter(values: list[float], scale: float, shift: float) -> None:
    dense, lexical = ranking(values), [("0", 2.0), ("x", 1.0)]
    moved = [(key, value * scale + shift) for key, value in dense]
    here, there = (dict(convex_combination(hits, lexical, 0.6)) for hits in (dense, moved))
    assert here.keys() == there.keys()
    if len(values) < 2 or max(values) - min(values) > 1e-3:
        assert there == pytest.approx(here, abs=1e-3)


def test_weights_of_one_and_zero_are_the_single_rankings() -> None:
    dense, lexical = [("a", 0.9), ("b", 0.5), ("c", 0.1)], [("c", 9.0), ("b", 5.0)]
    assert [key for key, _ in convex_combination(dense, lexical, 1.0)][:2] == ["a", "b"]
    assert [key for key, _ in convex_combination(dense, lexical, 0.0)][:2] == ["c", "b"]


@given(scores, scores, st.sampled_from(["weighted", "rrf"]), st.integers(1, 10))
def test_every_hit_appears_once_whatever_the_depth(a: list[float], b: list[float], method: str, depth: int) -> None:
    settings = RetrievalSettings(fusion=method, candidates=depth)  # type: ignore[arg-type]
    dense, lexical = ranking(a), ranking([value + 0.01 for value in set(map(abs, b))], "w")
    fused = [key for key, _ in fuse(dense, lexical, settings)]
    assert len(fused) == len(set(fused))
    assert set(fused) == {key for key, _ in dense} | {key for key, _ in lexical[:depth]}


def test_more_hits_asked_for_do_not_change_the_first_ones() -> None:
    settings = RetrievalSettings(candidates=3)
    dense = [(f"d{i}", 1 - i / 10) for i in range(8)]
    lexical = [("d2", 4.0), ("w", 3.0)]
    assert fuse(dense[:3], lexical, settings) == fuse(dense, lexical, settings)[:4]
