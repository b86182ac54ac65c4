"""From the contest to the pointer with real queries of people: a worse candidate is kept out, a better one gets to readers.

The candidates cost no training: the base here is the embedded model with noise on its weights, so that the one
without noise is a candidate that is clearly better, and one with more noise a candidate that is clearly worse.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acme_rag_pipeline.embedding.base_model import functional_files, model_digest, resolve_base_model
from acme_rag_pipeline.evaluation.arms import BASE, BASE_HYBRID, FINE_TUNED, FINE_TUNED_HYBRID
from acme_rag_pipeline.evaluation.contest import run
from acme_rag_pipeline.evaluation.contestants import contest, measured_candidate
from acme_rag_pipeline.evaluation.evaluate import evaluate
from acme_rag_pipeline.evaluation.golden import JudgedQuery, golden_queries, resolve_golden_queries
from acme_rag_pipeline.evaluation.metrics import Hit, score_query
from acme_rag_pipeline.evaluation.query_sets import GOLDEN, HELD_OUT
from acme_rag_pipeline.evaluation.report_content import report_of
from acme_rag_pipeline.evaluation.standing import standing_of
from acme_rag_pipeline.evaluation.words_alone import bm25_ahead
from acme_rag_pipeline.pairs.training_set import build_training_set
from acme_rag_pipeline.retrieval import Retriever, index
from acme_rag_pipeline.retrieval.expansion import without_expansion
from acme_rag_pipeline.retrieval.passage_encoder import install_base
from acme_rag_pipeline.serving import decisions, promote, serve
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL, Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.stages import StageResult, record, stored_result
from acme_rag_pipeline.store.warehouse import records
from acme_rag_pipeline.training.model_card import EVALUATION_BEGINS, EVALUATION_ENDS
from acme_rag_pipeline.training.validation import MINIMUM_HEADINGS
from acme_rag_pipeline_tests.conftest import PROJECT
from acme_rag_pipeline_tests.training.test_strategies import build_up_to_training_set

pytestmark = pytest.mark.slow
CARD = f"Ours.\n\n## Evaluation\n\n{EVALUATION_BEGINS}\nNot evaluated yet.\n{EVALUATION_ENDS}\n\nBy us.\n"
FOLDERS = ("leave", "remote-work")


def noisy(folder: Path, target: Path, noise: float) -> Path:
    """A model whose weights are off by the stated share."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    draws = torch.Generator().manual_seed(1)
    weights = load_file(target / "model.safetensors")
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.ndim > 1:
            weights[name] = weight + noise * weight.std() * torch.randn(weight.shape, generator=draws)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def settings_over(shared: Path, root: Path, golden_decides: bool) -> Settings:
    """Settings over the shared documents and base, and over judged queries and a store of one's own."""
    return Settings.load(
        root=root,
        documents=str(shared / "documents"),
        store=str(root / "store"),
        golden=str(root / "golden"),
        base_model=str(shared / "base"),
        generator="offline",
        evaluation={"golden_minimum_queries": 50 if golden_decides else 10_000, "test_share": 0.45},
        pairs={"queries_per_chunk": 1},
        # Their vectors are most of what would be encoded; other tests see to them.
        retrieval={"sentence_weight": 0},
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of the shipped documents with their judged queries, a base that could be better, and their store."""
    root = tmp_path_factory.mktemp("shared")
    for folder in FOLDERS:
        shutil.copytree(PROJECT / "data/documents" / folder, root / "documents" / folder)
    qrels = [json.loads(line) for line in (PROJECT / "data/golden/qrels.jsonl").read_text("utf-8").splitlines()]
    qrels = [row for row in qrels if row["doc_path"].startswith(FOLDERS)]
    asked = {row["query_id"] for row in qrels}
    queries = [json.loads(line) for line in (PROJECT / "data/golden/queries.jsonl").read_text("utf-8").splitlines()]
    (root / "golden").mkdir()
    for name, rows in (("queries", [q for q in queries if q["query_id"] in asked]), ("qrels", qrels)):
        (root / f"golden/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    good = shutil.copytree(resolve_base_model(EMBEDDED_BASE_MODEL, PROJECT).folder, root / "good")
    noisy(good, root / "base", 0.3)
    noisy(good, root / "worse", 1.5)
    build_up_to_training_set(Store(root / "store"), settings_over(root, root, golden_decides=True))
    # What both models make of the passages is encoded once for all tests.
    made = Collection(root, root / "encoded", golden_decides=True)
    for folder in (root / "worse", good):
        made.candidate(folder)
        contest_run = contest(made.store, made.settings)
        run(made.store, made.settings, contest_run, "fills the cache")
    shutil.copy(made.store.embedding_cache, Store(root / "store").embedding_cache)
    return root


class Collection:
    """A copy of the shared store and its judged queries that a test may change."""

    def __init__(self, shared: Path, root: Path, golden_decides: bool) -> None:
        for folder in ("golden", "store"):
            shutil.copytree(shared / folder, root / folder)
        self.store = Store(root / "store", wait_seconds=10)
        self.settings = settings_over(shared, root, golden_decides)
        build_up_to_training_set(self.store, self.settings)

    def candidate(self, folder: Path, twin: Path | None = None) -> str:
        """Stand in for a training that ended with this model, and with this twin that never saw the test units."""
        digests = []
        for source in filter(None, (folder, twin)):
            digests.append(model_digest(source))
            models.install(self.store, digests[-1], source, functional_files(source), {"README.md": CARD})
        details = {"model_digest": digests[0], "passage_prefix": "none", "twin_digest": digests[1] if twin else None}
        with self.store.warehouse.write() as connection:
            result = StageResult("fine_tuned_model", "/".join(digests), details=details)
            record(connection, result, "/".join(digests))
        index.index_candidate(self.store, self.settings)
        return digests[0]

    def decide(self) -> StageResult:
        evaluate(self.store, self.settings)
        decided = promote.decide_promotion(self.store, self.settings)
        serve.serve(self.store, self.settings)
        return decided

    def rows(self, query: str) -> list[dict[str, Any]]:
        with self.store.warehouse.read() as connection:
            return records(connection, query)

    def page(self) -> str:
        return (self.store.root / "reports/latest.html").read_text(encoding="utf-8")


@pytest.fixture
def good(shared: Path) -> Path:
    """A model that is better than the base of the store."""
    return shared / "good"


def test_people_decide_which_candidate_readers_get(shared: Path, good: Path, tmp_path: Path) -> None:
    made = Collection(shared, tmp_path, golden_decides=True)
    base = install_base(made.store, made.settings).digest

    worse = made.candidate(shared / "worse")
    decided = made.decide()
    # Fusion may help the base; the candidate's own model must not get to readers.
    assert decided.details["model_digest"] == base
    first = read_pointer(made.store.pointer)
    assert first.model_digest == base != worse
    gains = json.loads(made.rows("SELECT details FROM verdicts")[0]["details"])["comparisons"]
    assert next(row for row in gains if row["arm"] == FINE_TUNED)["high"] < 0

    better = made.candidate(good)
    decided = made.decide()
    assert decided.details["verdict"] == "promoted", decided.details["reason"]
    assert decided.details["model_digest"] == better
    plotted = stored_result(made.store.warehouse, "evaluation_report").details
    for metric in ("mrr@10", "recall@10"):
        arms = [name.split("/")[1] for name in plotted[metric] if name.startswith("golden/")]
        assert "base" in arms
        assert len(arms) in (2, 3), "what readers had, and the best challenger"
        assert all(0 <= value <= 1 for value in plotted[metric].values())
    pointer = read_pointer(made.store.pointer)
    assert (pointer.model_digest, pointer.reason) == (better, decided.details["reason"])
    fusion = without_expansion(made.settings.retrieval).model_dump()
    assert pointer.fusion == (fusion if pointer.recipe == "hybrid" else None)
    assert "Promoted: readers now get the candidate" in made.page()
    found = Retriever.open(made.store.root).search("may I work from another country for some weeks", k=3)
    assert any(hit.doc_path.startswith("remote-work/") for hit in found)

    # The model's card says what was found, and keeps what people wrote on it.
    card = (models.model_folder(made.store, better) / "README.md").read_text("utf-8")
    assert card.startswith("Ours.")
    assert card.endswith("By us.\n")
    assert "Not evaluated yet" not in card
    assert "Decision: promoted." in card
    means = "SELECT value FROM evaluations WHERE arm = '{}' AND query_set = 'golden' AND metric = 'ndcg@10' ORDER BY evaluated_at DESC"
    before, after = (made.rows(means.format(arm))[0]["value"] for arm in (BASE, FINE_TUNED))
    assert f"| ndcg@10 | {before:.3f} | {after:.3f} | {after - before:+.3f} (" in card

    # The numbers of the table are those that the search behind the pointer gives, and of the model it names.
    rows = made.rows("SELECT * FROM evaluations WHERE evaluated_at = (SELECT max(evaluated_at) FROM evaluations)")
    assert {r["measured_digest"] for r in rows if r["arm"] in (FINE_TUNED, FINE_TUNED_HYBRID)} == {better}
    assert {r["measured_digest"] for r in rows if r["arm"] == "bm25"} == {None}

    # Documents that changed a little may let another recipe of the same candidate win; readers keep what was decided.
    who = contest(made.store, made.settings)
    again = run(made.store, made.settings, who, "the same numbers again")
    assert report_of(made.store, made.settings, again, standing_of(made.store, again)).headline.startswith(
        "Promoted: readers now get"
    )
    other = "dense" if pointer.recipe == "hybrid" else "hybrid"
    with made.store.warehouse.write() as connection:
        connection.execute("UPDATE promotions SET recipe = ? WHERE verdict = 'promoted'", [other])
    report = report_of(made.store, made.settings, again, standing_of(made.store, again))
    assert report.headline == "Decided before, and that stands: promoted"
    assert report.reason.startswith("With the numbers of today the gate would say: ")
    with made.store.warehouse.write() as connection:
        connection.execute("UPDATE promotions SET recipe = ? WHERE verdict = 'promoted'", [pointer.recipe])

    # A person goes back: neither this candidate nor its other recipe returns by itself.
    serve.rollback(made.store, made.settings)
    assert read_pointer(made.store.pointer).model_digest == base
    lines = (tmp_path / "golden/queries.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "golden/queries.jsonl").write_text("\n".join(lines[1:]) + "\n", "utf-8")
    resolve_golden_queries(made.store, made.settings)
    build_training_set(made.store, made.settings)
    decided = made.decide()
    assert decided.details["verdict"] == decisions.KEPT_BY_A_PERSON
    assert read_pointer(made.store.pointer).model_digest == base
    assert "Kept as it is: a person rolled back from the winner" in made.page()
    # Another set of questions is another chance to be promoted by chance.
    assert contest(made.store, made.settings).decided_before == 1
    assert "decided on once before" in decided.details["reason"]
    last = made.rows("SELECT details FROM verdicts ORDER BY evaluated_at DESC")[0]
    assert all(row["level"] >= 0.975 for row in json.loads(last["details"])["comparisons"])

    # Who goes forward again by hand finds so in the report: readers get the candidate, and nobody is said to have left it.
    serve.rollback(made.store, made.settings, to=better)
    made.decide()
    assert read_pointer(made.store.pointer).model_digest == better
    served = FINE_TUNED_HYBRID if pointer.recipe == "hybrid" else FINE_TUNED
    assert readers_get(made.page()) == {served}
    assert "a person rolled back from the winner" not in made.page()
    report = made.rows("SELECT count(DISTINCT evaluation_id) AS n FROM verdicts")
    made.decide()
    assert made.rows("SELECT count(DISTINCT evaluation_id) AS n FROM verdicts") == report
    # And where a person goes to what was promoted before, the page follows.
    serve.rollback(made.store, made.settings, to=base)
    made.decide()
    assert readers_get(made.page()) <= {BASE, BASE_HYBRID}


def test_on_held_out_units_twins_are_measured_and_machine_written_questions_count_less(
    shared: Path, good: Path, tmp_path: Path
) -> None:
    made = Collection(shared, tmp_path, golden_decides=False)
    worse = shared / "worse"

    # What would be served is good, its twin is not: the verdict is the twin's.
    served = made.candidate(good, twin=worse)
    decided = made.decide()
    assert read_pointer(made.store.pointer).model_digest != served
    said = decided.details["bm25_ahead"]
    assert said.startswith("BM25 alone, without a model, scores higher than base")
    assert said.split(" (")[0] in made.page()
    rows = made.rows("SELECT * FROM evaluations WHERE arm = 'fine_tuned' AND metric = 'ndcg@10'")
    by_set = {row["query_set"]: row for row in rows}
    assert by_set[HELD_OUT]["measured_digest"] == model_digest(worse)
    assert by_set[GOLDEN]["measured_digest"] == served
    assert {row["model_digest"] for row in rows} == {served}
    assert by_set[HELD_OUT]["value"] < by_set[GOLDEN]["value"]

    # A twin that is good too, under its own name: people would have to gain more than the questions flatter.
    made.candidate(noisy(good, tmp_path / "refit", 0.05), twin=good)
    who = contest(made.store, made.settings)
    assert measured_candidate(who, held_out=True) == replace(who.candidate, model_digest=model_digest(good))
    assert measured_candidate(who, held_out=False) == who.candidate
    # Against the base alone, which was the champion first.
    who = replace(who, champion=decisions.decisions(made.store)[0])
    done = run(made.store, made.settings, who, "with the default handicap")
    gains = [row for row in done.decision.comparisons if row.arm in (FINE_TUNED, FINE_TUNED_HYBRID)]
    assert next(row for row in gains if row.arm == FINE_TUNED).significant
    gate = made.settings.gate.model_copy(update={"synthetic_handicap": max(row.difference for row in gains)})
    flattered = run(made.store, made.settings.model_copy(update={"gate": gate}), who, "with a handicap as large")
    assert flattered.decision.winner not in (FINE_TUNED, FINE_TUNED_HYBRID)
    free = made.settings.gate.model_copy(update={"synthetic_handicap": 0})
    unflattered = run(made.store, made.settings.model_copy(update={"gate": free}), who, "without a handicap")
    assert unflattered.decision.winner in (FINE_TUNED, FINE_TUNED_HYBRID)
    assert "synthetic evidence" in unflattered.decision.reason
    # The embedded generator's questions repeat words: BM25 alone is ahead of the base, and that is said.
    said = bm25_ahead(done.queries, done.results, dict.fromkeys(done.queries, BASE))
    assert "BM25 alone, without a model, scores higher than base on the held-out questions" in said
    assert bm25_ahead(done.queries, done.results, dict.fromkeys(done.queries, "nobody")) == ""
    assert {BASE, BASE_HYBRID} <= {result.arm for result in done.results[HELD_OUT]}


def test_readers_get_the_written_queries_that_golden_ones_judged(
    shared: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acme_rag_pipeline.evaluation.contest.leaks_of_today", lambda *_: SimpleNamespace(total=0))
    made = Collection(shared, tmp_path, golden_decides=True)
    made.candidate(good)
    # An LLM that asks what people ask, as it were: what is measured here is the way to the readers, not the gain.
    passages = live_passages(made.store.warehouse)
    wrote = [
        (f"openai/{query.query_id}", query.query, next(p.chunk_id for p in passages if answers(p, query)))
        for query in golden_queries(made.store)
        if any(answers(p, query) for p in passages)
    ]
    written_by_an_llm(made, wrote)
    decided = made.decide()
    assert decided.details["verdict"] == "promoted", decided.details["reason"]
    pointer = read_pointer(made.store.pointer)
    assert (pointer.recipe, pointer.fusion) == ("hybrid", made.settings.retrieval.model_dump())
    assert pointer.table.endswith("_queries")
    assert f"The hybrid arms know {len(wrote)} queries" in made.page()
    # A passage that nobody asked about is found less, so the guard looks at these questions apart.
    segments = json.loads(made.rows("SELECT details FROM verdicts")[0]["details"])["segments"]
    unasked = len(golden_queries(made.store)) - len(wrote)
    assert {row["queries"] for row in segments if row["kind"] == "asked about"} == (
        {len(wrote), unasked} if unasked else set()
    )
    served = serve.serve(made.store, made.settings)
    assert served.unchanged
    assert served.details["written_queries"] == len(wrote)
    # What was measured is what readers get.
    stored = made.rows(
        "SELECT value FROM evaluations WHERE query_set = 'golden' AND metric = 'ndcg@10' AND arm LIKE '%_hybrid'"
    )
    reader = Retriever.open(made.store.root, made.settings.retrieval)
    scores = []
    for query in golden_queries(made.store):
        hits = [Hit(hit.doc_path, hit.start, hit.end) for hit in reader.search(query.query, k=20)]
        scores.append(score_query(hits, query.evidence)["ndcg@10"])
    assert min(abs(sum(scores) / len(scores) - row["value"]) for row in stored) < 1e-3


def test_an_llm_that_asks_about_something_else_spoils_no_hybrid(shared: Path, good: Path, tmp_path: Path) -> None:
    made = Collection(shared, tmp_path, golden_decides=True)
    made.candidate(good)
    passages = live_passages(made.store.warehouse)
    # Each passage is asked what another one's heading says.
    wrote = [
        (f"openai/{n}", passages[n - 7].headings().split(" > ")[-1], passage.chunk_id)
        for n, passage in enumerate(passages)
    ]
    written_by_an_llm(made, wrote)
    headings = [[str(n), p.headings().split(" > ")[-1], p.chunk_id, "heading"] for n, p in enumerate(passages)]
    assert len(headings) >= MINIMUM_HEADINGS
    with made.store.warehouse.write() as connection:
        connection.executemany("INSERT INTO heading_queries VALUES (?, ?, ?, ?)", headings)
    who = contest(made.store, made.settings)
    assert who.fusion.expansion_weight == 1
    done = run(made.store, made.settings, who, "e")
    assert done.fusion == without_expansion(made.settings.retrieval) == done.contest.fusion
    assert "No challenger knows the queries that were written for the passages" in done.decision.reason


def readers_get(page: str) -> set[str]:
    """The arms that a page says readers get."""
    return set(re.findall(r'<th scope="row">(\w+)(?:(?!<th scope).)*?under readers">readers get this', page, re.S))


def written_by_an_llm(made: Collection, wrote: list[tuple[str, str, str]]) -> None:
    """Pair id, query and chunk id, as `synthetic_pairs` and `training_set` leave them."""
    rows = [list(row) for row in wrote]
    with made.store.warehouse.write() as connection:
        connection.executemany("INSERT INTO pairs VALUES (?, ?, ?, 'openai', 'question', 'llm', 'g', NULL)", rows)
        connection.executemany(
            "INSERT INTO training_pairs VALUES (?, 'train', NULL, ?, ?, 'openai', 'question', 'llm', 'u', 0, [])", rows
        )


def answers(passage: LivePassage, query: JudgedQuery) -> bool:
    """Whether a passage holds some of a query's evidence."""
    return score_query([Hit(passage.doc_path, passage.start_char, passage.end_char)], query.evidence)["ndcg@10"] > 0
