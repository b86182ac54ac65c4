"""What a training run chooses before it starts: the whitening, and whether headings stand before the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

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
from acme_rag_pipeline.training.expansion_distillation import STRONG_BASE
from acme_rag_pipeline.training.finetune import weights_of
from acme_rag_pipeline.training.loop import TrainingBrokeDown
from acme_rag_pipeline.training.rows import KeptPair, TrainingRows
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


def choices_over(folder: Path, headings: int, questions: int = len(TOPICS)) -> Choices:
    """Choices over so many validation questions of an LLM and headings, which the base answers all alike."""
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
        Validation(asked[:questions], passages, of_authors),
    )


@pytest.mark.parametrize(
    ("headings", "of_base", "share"),
    [
        (MINIMUM_HEADINGS, 0.1, 0.75),
        (MINIMUM_HEADINGS, 0.62, 0.0),
        (MINIMUM_HEADINGS, STRONG_BASE, 0.0),
        (MINIMUM_HEADINGS - 1, 0.1, 1.0),
    ],
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
    goes_on = headings >= MINIMUM_HEADINGS and of_base < STRONG_BASE
    assert seen == list(SHARES + FURTHER_SHARES if goes_on else SHARES)
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


@pytest.mark.parametrize("headings", [MINIMUM_HEADINGS - 1, MINIMUM_HEADINGS])
def test_where_an_llm_asked_too_few_questions_enough_headings_judge(tmp_path: Path, headings: int) -> None:
    choices = choices_over(tmp_path, headings, MINIMUM_QUERIES - 1)
    model = load_model(choices.base.folder, "cpu")
    for weight in model.parameters():
        weight.data.normal_(generator=torch.Generator().manual_seed(weight.numel()))
    enough = headings >= MINIMUM_HEADINGS
    # What decides about an epoch.
    assert (choices.score(model, "none") is not None) is enough
    assert choices.validation.usable is enough
    assert bool(choices.validation.searched()) is enough
    choice, tried = choices.share(model, "none", 0.0, Curve())
    assert choice == (UNCHANGED if enough else (1.0, 0.0)), "the base is better than weights that nobody trained"
    assert bool(tried) is enough
    assert [row["ndcg@10"] for row in tried[1:]] == [row["unlike_training"] for row in tried[1:]]


@pytest.mark.parametrize(
    ("of_all", "unlike", "kept"),
    [
        (0.6, 0.54, True),
        (0.6, 0.52, False),
        (0.49, 0.56, False),
        (0.55, None, True),
        (0.49, None, False),
    ],
    ids=["within chance", "headings object", "worse than the base", "no headings", "worse, no headings"],
)
def test_what_was_drawn_to_its_queries_is_taken_back_where_validation_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_all: float, unlike: float | None, kept: bool
) -> None:
    choices = choices_over(tmp_path, 0)
    model = load_model(choices.base.folder, "cpu")
    before = weights_of(model)
    tuned = {"share": 1.0, "ndcg@10": 0.6} | ({} if unlike is None else {"unlike_training": 0.55})
    tried = [{"share": 0.0, "ndcg@10": 0.5}, tuned]
    rows = TrainingRows([], [], [], [], [])

    def drawn(of: SentenceTransformer, *_: object) -> Curve:
        for weight in of.state_dict().values():
            if weight.is_floating_point():
                weight += 1
        return Curve(seconds=3.0)

    monkeypatch.setattr("acme_rag_pipeline.training.choices.draw_to_queries", drawn)
    monkeypatch.setattr(choices, "_scores", lambda *_: (of_all, unlike))
    said = choices.drawn_to_queries(model, rows, "none", tmp_path / "c.pt", tried, 1.0)
    assert (said["kept"], said["validation_before"], said["validation_after"]) == (kept, 0.6, of_all)
    assert ("after" in said) == (unlike is not None)
    name = next(n for n in before if n.endswith("embeddings.LayerNorm.bias"))
    assert bool((weights_of(model)[name] == before[name]).all()) is not kept


def test_a_refit_is_drawn_as_its_twin_and_a_drawing_that_breaks_down_costs_no_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = choices_over(tmp_path, 0)
    model = load_model(choices.base.folder, "cpu")
    before = weights_of(model)
    rows = TrainingRows([], [], [], [], [])
    drawing = "acme_rag_pipeline.training.choices.draw_to_queries"
    monkeypatch.setattr(drawing, lambda *_: Curve(seconds=3.0))
    assert choices.drawn_to_queries(model, rows, "none", tmp_path / "c.pt", [], 1.0) == {"seconds": 3.0, "kept": True}

    def broken(of: SentenceTransformer, *_: object) -> Curve:
        for weight in of.state_dict().values():
            if weight.is_floating_point():
                weight += 1
        raise TrainingBrokeDown("the loss is nan")

    monkeypatch.setattr(drawing, broken)
    said = choices.drawn_to_queries(model, rows, "none", tmp_path / "c.pt", [], 1.0)
    assert said == {"seconds": 0.0, "kept": False, "broke_down": True}
    assert all(bool((weight == before[name]).all()) for name, weight in weights_of(model).items())
