"""What a training run chooses before it starts: the whitening, and whether headings stand before the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder, load_model
from acme_rag_pipeline.settings import TrainingSettings
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.checkpoint import Curve
from acme_rag_pipeline.training.choices import (
    FURTHER_SHARES,
    SHARES,
    UNCHANGED,
    WHITENING_GAIN,
    Choices,
    whitening_that_helps,
)
from acme_rag_pipeline.training.finetune import weights_of
from acme_rag_pipeline.training.rows import KeptPair
from acme_rag_pipeline.training.validation import MINIMUM_HEADINGS, MINIMUM_QUERIES, Validation

TOPICS = [
    "apple",
    "bicycle",
    "candle",
    "desert",
    "elephant",
    "ferry",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "lemon",
    "mirror",
    "needle",
    "orchid",
    "pencil",
    "quarry",
    "rocket",
    "saddle",
    "tunnel",
    "umbrella",
    "violin",
    "window",
    "yogurt",
    "zebra",
]


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


@pytest.mark.parametrize(
    ("origin", "method", "prefix"),
    [
        ("curated", "people", "heading_path"),
        ("offline", "keyphrase", "heading_path"),
        ("offline", "heading", "none"),
        ("openai", "llm", "none"),
    ],
)
def test_headings_stand_before_the_text_where_questions_of_who_saw_none_ask_for_them(
    tmp_path: Path, origin: str, method: str, prefix: str
) -> None:
    assert len(TOPICS) >= MINIMUM_QUERIES
    passages = [
        LivePassage(
            chunk_id=f"c{n:02}", doc_path=f"{n}.md", title="Things", heading_path=(f"All about the {topic}",),
            text=f"It costs {100 + n} euros and can be ordered in the portal.", start_char=0, end_char=9,
            side="validation", near_duplicate_group=f"g{n:02}", unit=f"{n}.md",
        )
        for n, topic in enumerate(TOPICS)
    ]  # fmt: skip
    pairs = [
        KeptPair(f"p{n}", f"How much is a {topic}?", passages[n], origin, method, ()) for n, topic in enumerate(TOPICS)
    ]
    base = resolve_base_model("all-MiniLM-L6-v2", Path.cwd())
    choices = Choices(
        TrainingSettings(),
        base,
        Encoder(base.folder, base.digest),
        EmbeddingCache(tmp_path / "embeddings.duckdb", 10),
        Validation(pairs, passages),
    )
    assert choices.prefix() == prefix


def choices_over(folder: Path, headings: int) -> Choices:
    """Choices over validation questions of an LLM and so many headings, which the base answers all alike."""
    passages = [
        LivePassage(
            chunk_id=f"c{n:02}", doc_path=f"{n}.md", title="", heading_path=(), text=f"The {topic} costs {n} euros.",
            start_char=0, end_char=9, side="validation", near_duplicate_group=f"g{n:02}", unit=f"{n}.md",
        )
        for n, topic in enumerate(TOPICS)
    ]  # fmt: skip
    asked = [KeptPair(f"p{n}", f"How much is a {t}?", passages[n], "openai", "llm", ()) for n, t in enumerate(TOPICS)]
    of_authors = [
        KeptPair(f"h{n}", f"{TOPICS[n % len(TOPICS)]} {n}", passages[n % len(TOPICS)], "offline", "heading", ())
        for n in range(headings)
    ]
    base = resolve_base_model("all-MiniLM-L6-v2", Path.cwd())
    return Choices(
        TrainingSettings(),
        base,
        Encoder(base.folder, base.digest),
        EmbeddingCache(folder / "embeddings.duckdb", 10),
        Validation(asked, passages, of_authors),
    )


@pytest.mark.parametrize(
    ("headings", "of_base", "share"),
    [(MINIMUM_HEADINGS, 0.1, 0.75), (MINIMUM_HEADINGS, 0.62, 0.0), (MINIMUM_HEADINGS - 1, 0.1, 1.0)],
)
def test_headings_say_how_far_to_go_and_all_questions_whether_to_go_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headings: int, of_base: float, share: float
) -> None:
    choices = choices_over(tmp_path, headings)
    model = load_model(choices.base.folder, "cpu")
    start = weights_of(model)
    for weight in model.state_dict().values():
        if weight.is_floating_point():
            weight += 1
    seen: list[float] = []

    def scores(model: object, prefix: str) -> tuple[float, float | None]:
        name = next(n for n in start if n.endswith("embeddings.LayerNorm.bias"))
        gone = float((weights_of(model)[name] - start[name]).mean())  # type: ignore[arg-type]
        seen.append(round(gone, 3))
        # The LLM's own questions want to go ever further, the headings three quarters of the way.
        return 0.5 + 0.1 * gone, (0.5 - abs(gone - 0.75) if headings >= MINIMUM_HEADINGS else None)

    monkeypatch.setattr(choices, "_scores", scores)
    monkeypatch.setattr(choices.validation, "score_cached", lambda *_, **__: of_base)
    choice, tried = choices.share(model, "none", 0.0, Curve())
    assert choice == (UNCHANGED if share == 0 else (share, 0.0))
    assert seen == list(SHARES + FURTHER_SHARES if headings >= MINIMUM_HEADINGS else SHARES)
    assert ("unlike_training" in tried[-1]) == (headings >= MINIMUM_HEADINGS)
    name = next(n for n in start if n.endswith("embeddings.LayerNorm.bias"))
    assert np.allclose((weights_of(model)[name] - start[name]).numpy(), share, atol=1e-4)


def test_people_s_questions_and_headings_are_scored_beside_all_of_them(tmp_path: Path) -> None:
    choices = choices_over(tmp_path, MINIMUM_HEADINGS)
    validation = choices.validation
    of_all, unlike = validation.scores(choices.base_encoder, "none")
    assert of_all == validation.score(choices.base_encoder, "none")
    assert unlike is not None
    assert of_all is not None
    assert 0.5 < unlike <= 1
    people = [KeptPair("c", "Is there a zebra?", validation.passages[-1], "curated", "people", ())]
    with_people = Validation([*validation.pairs, *people], validation.passages, validation.unlike_training)
    assert len(with_people.unlike_training) == MINIMUM_HEADINGS + 1
    assert not Validation(validation.pairs, validation.passages).unlike_training
