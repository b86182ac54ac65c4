"""What a candidate is chosen from: which shares of the tuned weights compete, and which whitening it starts with."""

from __future__ import annotations

import pytest

from acme_rag_pipeline.settings import TrainingSettings
from acme_rag_pipeline.training.choices import (
    SHARES_OF_QUESTIONS,
    SHARES_OF_TEMPLATES,
    WHITENING_GAIN,
    shares_to_try,
    whitening_that_helps,
)
from acme_rag_pipeline.training.finetune import TrainingRows


def rows(templates: list[bool] | None) -> TrainingRows:
    queries = ["q"] * 4
    return TrainingRows(queries, [0] * 4, ["p"], ["g"], [[]] * 4, templates)


@pytest.mark.parametrize(
    ("templates", "shares"),
    [
        ([True, True, True, False], SHARES_OF_TEMPLATES),
        ([True, True, False, False], SHARES_OF_QUESTIONS),
        ([False] * 4, SHARES_OF_QUESTIONS),
        (None, SHARES_OF_QUESTIONS),
    ],
)
def test_all_of_the_way_competes_only_where_most_pairs_are_questions(
    templates: list[bool] | None, shares: tuple[float, ...]
) -> None:
    assert shares_to_try(TrainingSettings(), rows(templates)) == shares
    assert 1.0 not in SHARES_OF_TEMPLATES
    assert 1.0 in SHARES_OF_QUESTIONS


def test_a_choice_holds_for_templates_too() -> None:
    assert shares_to_try(TrainingSettings(interpolation=(0.25, 1.0)), rows([True] * 4)) == (0.25, 1.0)


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
