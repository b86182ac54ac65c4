"""A candidate that held-out units decide about: a twin chooses, a refit follows, and the card tells both."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from acme_rag_pipeline.chunking.sides import side_of, units
from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.retrieval.passage_encoder import install_base, newest_candidate
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.training import candidate, candidate_run, choices, finetune
from acme_rag_pipeline.training.candidate import train_candidate
from acme_rag_pipeline.training.finetune import weights_of
from acme_rag_pipeline.training.rows import TrainingRows, kept_pairs
from acme_rag_pipeline_tests.shallow_base import shallow_base
from acme_rag_pipeline_tests.training.test_strategies import build_up_to_training_set, trained

pytestmark = pytest.mark.slow

SUBJECTS = (
    "parking", "laptops", "travel", "holidays", "training", "visitors", "catering", "printing",
    "badges", "insurance", "pensions",
)  # fmt: skip


def write_documents(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subjects = [f"{subject} in {office}" for subject in SUBJECTS for office in ("Lisbon", "Oslo", "Graz")]
    for number, subject in enumerate(subjects):
        sections = "\n\n".join(
            f"## {part} of {subject}\n\nThe {part} of {subject} is the business of desk {number}-{part}. Whoever asks "
            f"for {subject} writes to that desk before noon, and the {part} is settled within {number + 2} days."
            for part in ("request", "approval", "budget", "return")
        )
        (folder / f"{subject}.md").write_text(f"# {subject.title()}\n\n{sections}\n", encoding="utf-8")


def tuned(settings_for: Callable[..., Settings], folder: Path, **training: Any) -> Settings:
    return settings_for(
        documents=str(folder),
        generator="offline",
        curated_pairs="none",
        golden="none",
        base_model=str(shallow_base()),
        training={"minimum_pairs": 5, "batch_size": 8, "interpolation": (0.5,)} | training,
        evaluation={"validation_share": 0.4, "test_share": 0.3},
        # Nothing here looks at what a hybrid finds.
        retrieval={"sentence_weight": 0},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a larger company and a store over it in which all but the training has run."""
    root = tmp_path_factory.mktemp("built")
    write_documents(root / "company")
    settings_for = functools.partial(Settings.load, root=root, store=str(root / "store"))
    build_up_to_training_set(Store(root / "store"), tuned(settings_for, root / "company"))
    return root


@pytest.fixture
def company(built: Path, store: Store) -> Path:
    """The larger company's documents; the store of the test is a copy over them that it may change."""
    shutil.copytree(built / "store", store.root)
    return built / "company"


@pytest.mark.parametrize(("asked", "taken"), [((0.25, 0.5), 0.5), (None, 1.0)])
def test_without_enough_validation_the_largest_share_that_was_asked_for_is_taken(
    store: Store,
    settings_for: Callable[..., Settings],
    documents: Path,
    asked: tuple[float, ...] | None,
    taken: float,
) -> None:
    done = trained(store, tuned(settings_for, documents, epochs=1, interpolation=asked))
    assert (done.details["share"], done.details["interpolation"]) == (taken, [])


def test_what_a_candidate_cost_is_all_of_its_training(
    store: Store, settings_for: Callable[..., Settings], documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, choose = [0.0], choices.Choices.share
    monkeypatch.setattr(candidate_run, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))

    def long_choice(*given: Any) -> Any:
        late[0] += 1000
        return choose(*given)

    monkeypatch.setattr(choices.Choices, "share", long_choice)
    settings = tuned(settings_for, documents, epochs=1)
    done = trained(store, settings)
    assert done.details["seconds"] >= 1000, "the loop ends before the choices"
    said = re.match(r"trained in (\d+) s", done.details["outcome"])
    assert said is not None
    assert int(said[1]) >= 1000
    # A run that finds this candidate trained shows no cost of its own; the candidate's stays for its report.
    with store.warehouse.write() as connection:
        connection.execute("UPDATE stages SET fingerprint = '' WHERE stage = 'fine_tuned_model'")
    again = train_candidate(store, settings)
    assert again.details["trained"] is False
    assert not {"seconds", "pairs_per_second"} & again.details.keys()
    assert stored_detail(store.warehouse, "fine_tuned_model", "seconds") == str(done.details["seconds"])


def test_validation_may_go_past_the_tuned_weights_and_the_refit_goes_as_far(
    store: Store, settings_for: Callable[..., Settings], company: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate_run.Validation, "score", lambda *_: 1.0)
    weights = {}
    for share in (1.0, 1.5):
        settings = tuned(settings_for, company, whitening=0.0, interpolation=(share,), epochs=1)
        done = trained(store, settings)
        assert done.details["share"] == share
        assert done.details["twin_digest"] != done.details["model_digest"]
        for kind in ("twin_digest", "model_digest"):
            folder = models.model_folder(store, done.details[kind])
            weights[kind, share] = weights_of(load_model(folder, "cpu"))
    base = weights_of(load_model(install_base(store, settings).folder, "cpu"))
    for kind in ("twin_digest", "model_digest"):
        moved = 0.0
        for name, weight in base.items():
            if weight.is_floating_point():
                further, tuned_weight = weights[kind, 1.5][name], weights[kind, 1.0][name]
                assert torch.allclose(further - weight, 1.5 * (tuned_weight - weight), atol=1e-6), (kind, name)
                moved = max(moved, float((tuned_weight - weight).abs().max()))
        assert moved > 1e-5, f"{kind}: a model that is the base says nothing here"


def test_a_base_of_static_word_vectors_has_nothing_to_train_and_that_is_an_outcome(
    store: Store, settings_for: Callable[..., Settings], documents: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    embedded = resolve_base_model("all-MiniLM-L6-v2", tmp_path).folder
    words = StaticEmbedding(Tokenizer.from_file(str(embedded / "tokenizer.json")), embedding_dim=32)
    SentenceTransformer(modules=[words], device="cpu").save_pretrained(str(tmp_path / "static"))
    settings = tuned(settings_for, documents, epochs=1, minimum_pairs=1).model_copy(update={"base_model": "static"})
    done = trained(store, settings)
    assert done.details["model_digest"] is None
    assert "static has no transformer to train" in done.details["outcome"]


@pytest.mark.parametrize("left", [0, 1])
def test_without_a_twin_no_candidate_is_trained_on_the_units_that_judge_it(
    left: int, store: Store, settings_for: Callable[..., Settings], company: Path
) -> None:
    with store.writer("test"), store.warehouse.write() as connection:
        connection.execute("UPDATE training_pairs SET dropped_because = NULL WHERE side = 'test'")
        connection.execute("UPDATE training_pairs SET dropped_because = 'near a held-out query' WHERE side = 'train'")
        connection.execute(
            "UPDATE training_pairs SET dropped_because = NULL WHERE pair_id IN "
            "(SELECT pair_id FROM training_pairs WHERE side = 'train' ORDER BY pair_id LIMIT ?)", [left]
        )  # fmt: skip
    done = train_candidate(store, tuned(settings_for, company, epochs=1))
    assert done.details["model_digest"] is None
    assert done.details["outcome"].startswith(f"{left} of ")
    assert "too few for a twin" in done.details["outcome"]


def test_what_a_killed_run_left_of_another_training_set_goes_when_today_s_is_dealt_with(
    store: Store, settings_for: Callable[..., Settings], documents: Path
) -> None:
    settings = tuned(settings_for, documents, epochs=1, minimum_pairs=10_000)
    left = [store.work / "training" / f"0123456789abcdef-twin.{ending}" for ending in ("pt", "tmp")]
    for outcome, path in itertools.product((trained, train_candidate), left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of a training")
        outcome(store, settings)
        assert not path.exists(), outcome


@pytest.mark.parametrize("of_plain_base", [0.9, 1.1])
def test_a_base_that_only_whitening_helps_is_a_candidate_and_its_refit_is_not_tuned_either(
    of_plain_base: float,
    store: Store,
    settings_for: Callable[..., Settings],
    company: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidate_run.Validation, "score_cached", lambda *_, **__: of_plain_base)
    settings = tuned(settings_for, company, whitening=0.2, interpolation=(0.0,), epochs=1)
    done = trained(store, settings)
    tried = {(row["share"], row["whitening"]): row["ndcg@10"] for row in done.details["interpolation"]}
    assert tried.keys() == {(0.0, 0.0), (0.0, 0.2)}
    base = install_base(store, settings)
    found = (done.details["model_digest"], done.details["twin_digest"])
    if of_plain_base > tried[0.0, 0.2]:
        assert found == (base.digest, base.digest)
        assert (done.details["share"], done.details["whitening"]) == choices.UNCHANGED
        return
    assert (done.details["share"], done.details["whitening"]) == (0.0, 0.2)
    assert "not tuned" in done.details["outcome"]
    of_base = weights_of(load_model(base.folder, "cpu"))
    for digest in found:
        assert digest != base.digest
        weights = weights_of(load_model(models.model_folder(store, digest), "cpu"))
        assert set(weights) - set(of_base) == {"2.linear.weight"}
        assert all(bool((weights[name] == weight).all()) for name, weight in of_base.items())


def test_a_refit_takes_its_share_from_the_twin_and_its_card_shows_the_choice(
    store: Store, settings_for: Callable[..., Settings], company: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "PASSAGES_SHOWN", 120)
    # Two layers gain nothing here: the second of the epochs is the best, and the share better than the base.
    scores = itertools.chain([1.0, 2.0, 1.5], itertools.repeat(1.9))
    monkeypatch.setattr(choices.Choices, "_scores", lambda *_: (next(scores), None))
    planned: list[tuple[int, int | None]] = []
    original = candidate_run.finetune

    def watched(start: Path, rows: TrainingRows, training: TrainingSettings, *rest: Any, **named: Any) -> Any:
        planned.append((finetune.epochs_for(len(set(rows.positives)), training), named["end_after"]))
        return original(start, rows, training, *rest, **named)

    monkeypatch.setattr(candidate_run, "finetune", watched)
    settings = tuned(settings_for, company, whitening=0.2, learning_rate=3e-4, interpolation=(0.75,))
    done = trained(store, settings)
    assert done.details["twin_digest"]
    tried = done.details["interpolation"]
    assert [(row["share"], row["whitening"]) for row in tried] == [(0.0, 0.0), (0.0, 0.2), (0.75, 0.2)]
    cards = {}
    for digest in {done.details["model_digest"], done.details["twin_digest"]}:
        folder = models.model_folder(store, digest)
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        cards[about["kind"]] = (about["share"], about["interpolation"])
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "Validation nDCG@10 by share" in card
        assert f"{done.details['hard_negatives']} mined negatives a passage" in card
    assert cards == {"twin": (done.details["share"], tried), "served": (done.details["share"], tried)}
    served = newest_candidate(store)
    assert served is not None
    assert served.model_digest == done.details["model_digest"]
    (of_twin, _), (of_refit, end_after) = planned
    assert of_refit == of_twin > 1, "the learning rate falls over the same epochs, though the refit has more passages"
    assert end_after == done.details["curve"]["best_epoch"] == 2 < of_twin


def test_a_twin_that_is_gone_is_trained_again(
    store: Store, settings_for: Callable[..., Settings], company: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The plain base loses, so that there is a twin of its own.
    monkeypatch.setattr(candidate_run.Validation, "score_cached", lambda *_, **__: 0.0)
    settings = tuned(settings_for, company, whitening=0.2, interpolation=(0.0,), epochs=1)
    first = trained(store, settings).details
    assert train_candidate(store, settings).unchanged
    shutil.rmtree(models.model_folder(store, first["twin_digest"]))
    again = train_candidate(store, settings)
    assert again.details["trained"]
    assert "directory is gone" in again.details["outcome"]
    assert again.details["twin_digest"] == first["twin_digest"]
    assert models.model_folder(store, first["twin_digest"]).exists()


def test_a_run_that_ends_right_after_the_training_does_not_forget_what_was_trained_on(
    store: Store, settings_for: Callable[..., Settings], company: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    settings = tuned(settings_for, company, whitening=0.2, interpolation=(0.0,), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(candidate, "_drop_checkpoints", killed)
        with pytest.raises(KeyboardInterrupt):
            train_candidate(store, settings)
    first = train_candidate(store, settings).details
    assert "trained before" in first["outcome"]
    with store.warehouse.read() as connection:
        pairs = connection.execute(
            "SELECT count(*) FROM trained_pairs WHERE training_key = ?", [first["training_key"]]
        ).fetchall()[0][0]
    assert pairs == first["pairs"]


def test_the_key_follows_what_validation_searches_and_no_path(
    store: Store, settings_for: Callable[..., Settings], company: Path, tmp_path: Path
) -> None:
    documents = shutil.copytree(company, tmp_path / "documents")
    settings = tuned(settings_for, documents, minimum_pairs=10_000)
    train_candidate(store, settings)
    passages = live_passages(store.warehouse)
    pairs = kept_pairs(store.warehouse, passages)
    path = pairs[0].passage.doc_path
    sections = [(p.heading_path, p.side) for p in passages if p.doc_path == path]

    def stays(name: str) -> bool:
        placed = units(
            name, [headings for headings, _ in sections], len(list(documents.iterdir())), settings.evaluation
        )
        return [side_of(unit, settings.evaluation) for unit in placed] == [side for _, side in sections]

    name = next(name for n in itertools.count() if stays(name := f"a later name {n}.md"))
    (documents / path).rename(documents / name)
    build_up_to_training_set(store, settings)
    renamed = kept_pairs(store.warehouse)
    assert {pair.pair_id for pair in renamed} != {pair.pair_id for pair in pairs}
    assert [(p.query, p.passage.text) for p in renamed] == [(p.query, p.passage.text) for p in pairs]
    assert train_candidate(store, settings).unchanged
    held = next(p for p in pairs if p.passage.side == "validation" and p.passage.doc_path != path).passage.chunk_id
    drop = "UPDATE training_pairs SET dropped_because = 'nobody asks' WHERE chunk_id = ?"
    for statement, other in (
        (drop, True),
        ("UPDATE chunks SET text = text || ' And so on.' WHERE chunk_id = ?", True),
        ("UPDATE chunks SET doc_path = doc_path || '.md' WHERE chunk_id = ?", False),
    ):
        with store.writer("test"), store.warehouse.write() as connection:
            connection.execute(statement, [held])
        assert train_candidate(store, settings).unchanged is not other, statement
