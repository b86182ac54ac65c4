"""What a training run chooses before it starts: the whitening, and whether headings stand before the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.settings import TrainingSettings
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.choices import WHITENING_GAIN, Choices, whitening_that_helps
from acme_rag_pipeline.training.rows import KeptPair
from acme_rag_pipeline.training.validation import MINIMUM_QUERIES, Validation

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
