"""Mined negatives are near, clearly below the positive, and never from where they must not come."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.pairs.hard_negatives import mine


@given(seed=st.integers(0, 50), count=st.integers(0, 5))
def test_every_rule_holds(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    passages = rng.normal(size=(12, 4)).astype(np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    positives = rng.integers(0, 12, size=7).tolist()
    queries = passages[positives] + 0.3 * rng.normal(size=(7, 4)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    groups = [str(i // 2) for i in range(12)]
    barred = rng.random(12) < 0.3
    answering = [{str(rng.integers(0, 6))} for _ in positives]
    mined = mine(queries, positives, passages, groups, barred, count=count, margin=0.95, answering=answering)
    for row, found in enumerate(mined):
        scores = passages @ queries[row]
        assert len(found) <= count
        assert not barred[found].any()
        assert all(groups[n] not in {groups[positives[row]], *answering[row]} for n in found)
        assert (scores[found] < 0.95 * scores[positives[row]] + 1e-6).all()
        assert sorted(found, key=lambda n: -scores[n]) == found
