"""Which whitening a candidate starts with."""

from __future__ import annotations

import pytest

from acme_rag_pipeline.training.choices import WHITENING_GAIN, whitening_that_helps


@pytest.mark.parametrize(
    ("scores", "exponent"),
    [
        ({0.0: 0.5, 0.1: 0.5 + WHITENING_GAIN * 1.1, 0.2: 0.5 + WHITENING_GAIN * 2}, 0.2),
        ({0.0: 0.5, 0.1: 0.5 + WHITENING_GAIN * 1.1, 0.2: 0.4}, 0.1),
        ({0.0: 0.5, 0.1: 0.5 + WHITENING_GAIN * 0.9, 0.2: 0.5}, 0.0),
        ({0.0: 0.5, 0.1: 0.6, 0.2: 0.6}, 0.1),
    ],
)
def test_a_whitening_must_help_the_base_clearly(scores: dict[float, float], exponent: float) -> None:
    assert whitening_that_helps(scores) == exponent
