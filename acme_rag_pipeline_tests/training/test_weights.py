"""Queries that people wrote keep their share of the loss beside any number of templates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.training.weights import LARGEST_WEIGHT, query_weights


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 0.95))
def test_written_queries_have_their_share_or_the_largest_weight(templates: list[bool], share: float) -> None:
    weights = query_weights(templates, share)
    written = ~np.array(templates, dtype=bool)
    if weights is None:
        assert not written.any() or written.mean() >= share
        return
    assert set(weights[~written]) == {1.0}
    [weight] = set(weights[written])
    assert 1 <= weight <= LARGEST_WEIGHT
    if weight < LARGEST_WEIGHT:
        assert weights[written].sum() / weights.sum() == pytest.approx(share, abs=1e-4)


def test_half_of_the_loss_is_the_peoples() -> None:
    weights = query_weights([False] * 20 + [True] * 60, 0.5)
    assert weights is not None
    assert weights[:20].tolist() == [3.0] * 20
    assert query_weights([True] * 5, 0.5) is None
    assert query_weights([False] * 5, 0.5) is None
    assert query_weights([False, True, True], 0) is None
