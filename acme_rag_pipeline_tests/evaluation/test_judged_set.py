"""`acme-rag evaluate` on a judged set of somebody: numbers and page, and nothing decided."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from click.testing import CliRunner

from acme_rag_pipeline import cli
from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.arms import ArmResult
from acme_rag_pipeline.evaluation.comparison import percent
from acme_rag_pipeline.evaluation.contest import run
from acme_rag_pipeline.evaluation.contestants import contest
from acme_rag_pipeline.evaluation.evaluate import evaluate
from acme_rag_pipeline.evaluation.golden import resolve_golden_queries
from acme_rag_pipeline.evaluation.judged_set import compare_arms, comparison_page
from acme_rag_pipeline.evaluation.metrics import METRICS
from acme_rag_pipeline.evaluation.report import render_report
from acme_rag_pipeline.evaluation.report_content import report_of
from acme_rag_pipeline.evaluation.report_parts import query_changes
from acme_rag_pipeline.evaluation.standing import Standing, standing_of
from acme_rag_pipeline.evaluation.words_alone import bm25_ahead
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache, encoder_for
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Recipe
from acme_rag_pipeline.store.stages import StageResult, record, timed
from acme_rag_pipeline.store.warehouse import insert
from acme_rag_pipeline.training.validation import MINIMUM_HEADINGS
from acme_rag_pipeline_tests.conftest import files_of
from acme_rag_pipeline_tests.evaluation.test_gate import Judged
from acme_rag_pipeline_tests.evaluation.test_report import assert_harmless
from acme_rag_pipeline_tests.increments.worker import fork_server, obey_mode_bits

JUDGED = [
    ("who pays when I sleep in London", "travel.md", "hotels in London 210 euros"),
    ("six weeks off after six years", "hr/leave.md", "Evergreen is a paid sabbatical of six weeks"),
    ("FRM-IM-07", "remote.txt", "The form is\nFRM-IM-07"),
    (
        "a screen for my desk at home <script>alert(1)</script>",
        "remote.txt",
        "Acme pays for a chair, a desk and a\nscreen",
    ),
    ("what do I do when I am ill", "hr/leave.md", "Report sick before nine o'clock"),
    ("money for tips", "travel.md", "Tips up to ten percent are fine"),
]


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings], store: Store) -> Settings:
    """The small company, in the base index."""
    made = settings_for()
    ingest_documents(store, made)
    split_documents(store, made)
    index.index_base(store, made)
    return made


def test_without_questions_the_report_names_no_candidate_and_says_why(settings: Settings, store: Store) -> None:
    done = run(store, settings, contest(store, settings), "nothing to ask")
    report = report_of(store, settings, done, standing_of(store, done))
    assert (report.candidate, report.champion, report.verdict) == ("none", "base", "kept: cannot tell")
    assert report.headline == "Kept as it is: there are no questions to judge by"
    assert_harmless(render_report(report))


def test_the_report_says_where_the_golden_questions_come_from(
    settings_for: Callable[..., Settings], settings: Settings, store: Store, judged: Path
) -> None:
    own = settings_for(golden=str(judged))
    resolve_golden_queries(store, own)
    done = run(store, own, contest(store, own), "people's or a machine's")
    report = report_of(store, own, done, standing_of(store, done))
    notes = {shown.name: shown.note for shown in report.query_sets}
    assert notes == {"golden": "The judged questions in ACME_RAG_GOLDEN."}


def test_the_report_shows_the_time_of_each_stage_and_of_the_whole_training(settings: Settings, store: Store) -> None:
    done = run(store, settings, contest(store, settings), "what it cost")
    with timed(), store.warehouse.write() as connection:
        trained = StageResult("fine_tuned_model", "v", details={"model_digest": None, "seconds": 61.5})
        for result in (trained, StageResult("training_set", "v"), StageResult("served_index", "v")):
            record(connection, result, "f")
    shown = report_of(store, settings, done, standing_of(store, done)).stages
    assert list(shown) == ["training_set", "fine_tuned_model", "evaluation_report", "served_index"]
    assert shown["fine_tuned_model"] == 61.5
    assert shown["evaluation_report"] == done.seconds


def test_the_report_shows_the_arm_that_its_reason_is_about(settings: Settings, store: Store) -> None:
    judged = Judged()
    falls, chance = judged.arm("base_hybrid", 0.09, keywords=-0.06), judged.arm("fine_tuned", 0.13, spread=2.0)
    decision = judged.decide(falls, chance, segments={"style": judged.style})
    assert decision.verdict == "kept: segment style=keywords falls"
    done = replace(run(store, settings, contest(store, settings), "a fall, and a larger gain"), decision=decision)
    report = report_of(store, settings, done, standing_of(store, done))
    assert decision.reason.startswith(f"base stays: {report.candidate} is better overall")


def test_the_report_of_a_promotion_that_a_person_went_back_from_is_written_anew(
    settings: Settings, store: Store
) -> None:
    with store.warehouse.write() as connection:
        for stage in ("training_set", "golden_queries", "fine_tuned_model", "fine_tuned_index"):
            record(connection, StageResult(stage, stage), stage)
    base = decisions.champion(store, settings)
    evaluate(store, settings)
    key = contest(store, settings).candidate_key
    pages = []
    for recipe, verdict in (("hybrid", "promoted"), ("dense", "rolled back"), ("hybrid", "rolled back")):
        decisions.append(
            store, encoder=base.encoder, recipe=recipe, verdict=verdict, reason="by hand", candidate_key=key
        )
        evaluate(store, settings)
        assert evaluate(store, settings).unchanged
        pages.append("stands: rolled back" in (store.root / "reports/latest.html").read_text("utf-8"))
    assert pages == [False, True, False]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Judged queries of somebody else."""
    folder = tmp_path / "judged"
    folder.mkdir()
    for name, rows in (
        ("queries", [{"query_id": str(n), "query": query} for n, (query, _, _) in enumerate(JUDGED)]),
        (
            "qrels",
            [{"query_id": str(n), "doc_path": path, "quote": quote} for n, (_, path, quote) in enumerate(JUDGED)],
        ),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_page_of_a_judged_set_shows_what_the_table_says(
    settings: Settings, store: Store, judged: Path, tmp_path: Path
) -> None:
    page = tmp_path / "new/page.html"
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    before = decisions.decisions(store)
    answer = CliRunner().invoke(cli.main, [*options, "--html", str(page), "--json"])
    assert answer.exit_code == 0, answer.output
    rows = {row["arm"]: row for row in json.loads(answer.stdout)["arms"]}
    assert rows.keys() == {"bm25", "base", "base_hybrid"}
    assert "training set" not in json.loads(answer.stdout)["note"]

    text = " ".join(" ".join(assert_harmless(page.read_text(encoding="utf-8")).text).split())
    for arm, row in rows.items():
        assert arm in text
        assert f"{row['ndcg@10']['value']:.3f}" in text
    gain = rows["base_hybrid"]["gain"]
    assert f"{gain['difference']:+.3f}, 95 % interval {gain['low']:+.3f} to {gain['high']:+.3f}" in text
    assert "Readers use base today. This is a comparison: it decides nothing." in text
    for part in ("Judged questions", "Against the base", "Groups of questions against the base", "Read with care"):
        assert part in text
    assert "Training data" not in text
    assert decisions.decisions(store) == before


def test_a_judged_set_that_was_trained_on_or_is_tiny_says_so_and_claims_nothing(
    settings: Settings, store: Store, judged: Path, tmp_path: Path
) -> None:
    for name in ("queries", "qrels"):
        rows = (judged / f"{name}.jsonl").read_text().splitlines()
        (judged / f"{name}.jsonl").write_text("\n".join(rows[:2]) + "\n")
    with store.warehouse.write() as connection:
        rows = [
            {
                "pair_id": side, "side": side, "query": query.upper() + "?", "chunk_id": "c", "origin": "curated",
                "style": "question", "method": "people", "unit": "u", "overlap": 0.1, "negatives": [],
            }
            for side, (query, _, _) in zip(("train", "validation"), JUDGED, strict=False)
        ]  # fmt: skip
        insert(connection, "training_pairs", rows)
    page = tmp_path / "page.html"
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    answer = CliRunner().invoke(cli.main, [*options, "--html", str(page), "--json"])
    assert answer.exit_code == 0, answer.output
    note = json.loads(answer.stdout)["note"]
    assert "1 of 2 queries stand among training pairs too: a tuned model learned them" in note
    assert "1 of 2 queries stand in the validation share too: no model learned them, but they chose the weights" in note
    assert "with 2 document sections no difference can be told from chance; at least 6 are needed" in note
    text = page.read_text(encoding="utf-8")
    assert "base_hybrid is not clearly different from base on these questions" in text
    assert '<td class="soft verdict">cannot tell</td>' in text
    assert '<td class="soft verdict">worse</td>' not in text
    # Both answer every question: that they show no spread does not make the score certain.
    base = next(row for row in json.loads(answer.stdout)["arms"] if row["arm"] == "base")["ndcg@10"]
    assert base["low"] < base["value"]


@pytest.mark.parametrize("headings", [MINIMUM_HEADINGS - 1, MINIMUM_HEADINGS])
def test_a_judged_set_like_the_headings_says_so_where_these_are_enough_to_choose_by(
    settings: Settings, store: Store, judged: Path, headings: int
) -> None:
    asked = [query for query, _, _ in JUDGED] + [f"heading {number}" for number in range(headings - len(JUDGED))]
    rows = [{"query_id": query, "query": query, "chunk_id": "c", "method": "heading"} for query in asked]
    with store.warehouse.write() as connection:
        insert(connection, "heading_queries", rows)
    note = compare_arms(store, settings, judged).note
    assert ("chose the weights" in note) is (headings == MINIMUM_HEADINGS), note


def test_queries_that_lie_near_to_what_was_learned_or_is_searched_are_counted_and_the_caveat_is_told(
    settings: Settings, store: Store, judged: Path
) -> None:
    base = contest(store, settings).base
    near, searched, unknown = "who pays if I sleep in London?", "what do I do when I'm ill?", "nobody encoded this"
    embedding_cache(store).queries(encoder_for(store, base.model_digest, settings), [near, searched])
    with store.warehouse.write() as connection:
        found = connection.execute("SELECT chunk_id FROM chunks WHERE doc_path = 'hr/leave.md' LIMIT 1").fetchall()
        (chunk,) = found[0]
        told = {"origin": "openai", "style": "question", "method": "openai"}
        rows = [
            told | {
                "pair_id": query, "side": side, "query": query, "chunk_id": where, "unit": "u", "overlap": 0.1,
                "negatives": [],
            }
            for query, side, where in ((near, "train", "gone"), (unknown, "test", "gone"), (searched, "validation", chunk))
        ]  # fmt: skip
        insert(connection, "training_pairs", rows)
        insert(
            connection,
            "pairs",
            [told | {"pair_id": searched, "query": searched, "chunk_id": chunk, "generator": "llm"}],
        )
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    note = json.loads(CliRunner().invoke(cli.main, [*options, "--json"]).stdout)["note"]
    assert "1 of 6 queries lies near to training queries (cosine of 0.9 or more by the base model): a tuned" in note
    assert "1 of 6 queries lies near to queries that the hybrid arms search beside the passages" in note
    assert "1 of 2 training queries have no stored vector and were not compared for nearness" in note
    assert note.endswith("these may be near to what it learned from")
    assert note in CliRunner().invoke(cli.main, options).output
    own = settings.model_copy(update={"golden": judged})
    assert "what it learned from" not in compare_arms(store, own, judged).table()["note"]


def test_what_readers_use_now_is_marked_wherever_the_arms_are_shown(
    settings: Settings, store: Store, judged: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    told = json.loads(CliRunner().invoke(cli.main, [*options, "--html", str(page), "--json"]).stdout)
    assert told["promoted"] == "base"
    lines = CliRunner().invoke(cli.main, options).output.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("<- readers use this")] == ["base"]
    assert lines[-1] == "Intervals are 95 % each, units resampled, and not adjusted for the number of arms."
    shown = page.read_text(encoding="utf-8")
    (row,) = [row for row in shown.split("<tr>") if "readers get this" in row]
    assert '<th scope="row">base<' in row
    assert "each holds for itself, not for all arms together" in shown


def test_the_ranks_of_a_change_are_those_that_its_scores_come_from(
    settings: Settings, store: Store, judged: Path
) -> None:
    done = compare_arms(store, settings, judged)
    words, base, hybrid = (next(r for r in done.results if r.arm == arm) for arm in ("bm25", "base", "base_hybrid"))
    changes = query_changes(store, settings, done.queries, words, hybrid, base)
    assert changes
    for change in changes:
        (piece,) = change.evidence
        for score, rank in (
            (change.before_score, piece.before), (change.after_score, piece.after), (change.base_score, piece.base)
        ):  # fmt: skip
            assert score == pytest.approx(1 / math.log2(rank + 1) if rank is not None and rank <= 10 else 0)
        assert piece.quote
        assert change.same_first is (words.best[change.query_id][:1] == hybrid.best[change.query_id][:1])
    assert all(c.base_score is None for c in query_changes(store, settings, done.queries, base, hybrid, base))


def test_the_report_compares_what_readers_get_with_every_other_arm(
    settings_for: Callable[..., Settings], settings: Settings, store: Store, judged: Path
) -> None:
    own = settings_for(golden=str(judged))
    resolve_golden_queries(store, own)
    done = run(store, own, contest(store, own), "an arm that is ahead")
    asked = [
        replace(query, query_id=f"{query.query_id}/{n}", unit=f"unit {query.query_id}/{n}")
        for n in range(10)
        for query in done.queries["golden"]
    ]

    def arm(name: str, value: float) -> ArmResult:
        ids = [query.query_id for query in asked]
        scores = {i: dict.fromkeys(METRICS, value + 0.01 * (n % 7)) for n, i in enumerate(ids)}
        return ArmResult(name, scores, {i: [] for i in ids}, {i: [None] for i in ids})

    results = [arm("bm25", 0.1), arm("base", 0.2), replace(arm("base_hybrid", 0.7))]
    done = replace(done, queries={"golden": asked}, results={"golden": results})
    report = report_of(store, own, done, standing_of(store, done))
    (part,) = report.query_sets
    assert part.readers == "base"
    assert {row.arm: row.significant for row in part.versus_readers} == {"bm25": False, "base_hybrid": True}
    assert report.ahead.startswith("On the golden questions base_hybrid (+0.500 nDCG@10, ")
    assert report.ahead.endswith("ahead of base, which readers get; adjusted by Holm's steps for 2 arms.")
    assert report.ahead in " ".join(assert_harmless(render_report(report)).text)

    # What is read with care and what the table shows are the same numbers, and the arm of the base is no candidate.
    noisy = {i: dict.fromkeys(METRICS, 0.2 + (0.5 if n % 2 else -0.2)) for n, i in enumerate(results[0].scores)}
    ahead = replace(done, results={"golden": [replace(results[0], scores=noisy), *results[1:]]})
    shown = report_of(store, own, ahead, standing_of(store, ahead))
    (row,) = [row for row in shown.query_sets[0].versus_readers if row.arm == "bm25"]
    said = bm25_ahead(ahead.queries, ahead.results, {"golden": "base"})
    assert (
        f"({row.difference:+.3f}, between {row.low:+.3f} and {row.high:+.3f} with {percent(row.level)} % confidence)"
        in said
    )
    assert said.endswith("; it may be chance.") is not row.significant
    assert shown.candidate_label == ("challenger" if shown.candidate.startswith("base") else "candidate")

    won = replace(done, decision=replace(done.decision, winner="base_hybrid", verdict="promoted"))
    promoted = report_of(store, own, won, Standing("promoted", True, ""))
    assert (promoted.query_sets[0].readers, promoted.ahead) == ("base_hybrid", "")
    left = report_of(store, own, won, Standing(decisions.KEPT_BY_A_PERSON, False, ""))
    assert left.query_sets[0].readers == "base"


def test_one_query_is_spoken_of_as_one(settings: Settings, store: Store, judged: Path) -> None:
    for name in ("queries", "qrels"):
        lines = (judged / f"{name}.jsonl").read_text().splitlines()
        (judged / f"{name}.jsonl").write_text(f"{lines[0]}\n")
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    answer = CliRunner().invoke(cli.main, options)
    assert answer.output.startswith("1 query over 1 unit; with 1 document section no difference"), answer.output


def test_a_page_that_cannot_be_written_is_one_sentence(
    settings: Settings, store: Store, judged: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    answer = CliRunner().invoke(cli.main, [*options, "--html", str(tmp_path / "file/page.html")])
    assert answer.exit_code == 1
    assert "--html: cannot write" in answer.output


def evaluate_as_told(options: list[str], root: Path, out: Connection) -> None:
    """Body of a process for which the mode bits of files hold."""
    obey_mode_bits()
    # The server that it is forked from has the environment of the test that began it, whose folder may be gone.
    answer = CliRunner().invoke(cli.main, options, env={"ACME_RAG_ROOT": str(root)})
    out.send((answer.exit_code, answer.output))


def test_a_read_only_store_is_evaluated_and_nothing_is_recorded(settings: Settings, store: Store, judged: Path) -> None:
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    folders = [store.root, *store.root.rglob("*")]
    modes = {path: path.stat().st_mode for path in folders}
    before = files_of(store)
    incoming, outgoing = fork_server().Pipe(duplex=False)
    try:
        for path in reversed(folders):
            path.chmod(modes[path] & ~0o222)
        process = fork_server().Process(target=evaluate_as_told, args=(options, settings.root, outgoing), daemon=True)
        process.start()
        outgoing.close()
        exit_code, said = incoming.recv()
        process.join(30)
    finally:
        for path in folders:
            path.chmod(modes[path])
    assert exit_code == 0, said
    assert "base_hybrid" in said
    assert files_of(store) == before
    assert decisions.decisions(store) == []


def test_a_lost_table_changes_no_number(settings: Settings, store: Store, judged: Path) -> None:
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    before = CliRunner().invoke(cli.main, [*options, "--json"])
    shutil.rmtree(store.lancedb)
    after = CliRunner().invoke(cli.main, [*options, "--json"])
    assert (before.exit_code, after.exit_code) == (0, 0)
    assert json.loads(before.stdout)["arms"] == json.loads(after.stdout)["arms"]


def test_a_judged_set_that_cannot_be_read_is_named_by_the_option(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate"]
    called = CliRunner().invoke(cli.main, [*options, "--golden", str(tmp_path / "empty")])
    assert called.exit_code == 1
    assert f"--golden {tmp_path / 'empty'}" in called.output
    assert "ACME_RAG_GOLDEN" not in called.output


def test_hybrids_know_the_written_queries_as_they_do_when_people_search(
    settings: Settings, store: Store, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acme_rag_pipeline.evaluation.arms.nearly_all_asked", lambda _: True)
    fusion = settings.retrieval
    assert fusion.expansion_weight
    base = contest(store, settings).base
    decisions.append(
        store, encoder=base, recipe="hybrid", fusion=fusion.model_dump(), verdict="promoted", reason="held-out units"
    )
    done = compare_arms(store, settings, judged)
    assert done.who.fusion == fusion
    # What readers use is one of the arms that are shown, not another one beside them.
    assert [result.arm for result in done.results if result.arm == "champion"] == []
    assert {result.arm for result in done.results} == {"bm25", "base", "base_hybrid"}


@pytest.mark.parametrize(("recipe", "judged_with"), [("hybrid", ", with the values it was judged with"), ("dense", "")])
def test_what_the_arm_champion_is_stands_below_the_table(
    settings: Settings, store: Store, judged: Path, recipe: Recipe, judged_with: str
) -> None:
    options = ["--store", str(store.root), "--documents", str(settings.documents), "evaluate", "--golden", str(judged)]
    assert "champion" not in CliRunner().invoke(cli.main, options).output
    base = contest(store, settings).base
    if recipe == "hybrid":
        fusion = settings.retrieval.model_dump() | {"dense_weight": 0.125}
        decisions.append(store, encoder=base, recipe=recipe, fusion=fusion, verdict="promoted", reason="by hand")
    else:
        other = "1" * 64
        shutil.copytree(models.model_folder(store, base.model_digest), models.model_folder(store, other))
        decisions.append(
            store, encoder=replace(base, model_digest=other), recipe=recipe, verdict="promoted", reason="by hand"
        )
    digest = decisions.decisions(store)[-1].model_digest
    table = CliRunner().invoke(cli.main, options).output.splitlines()
    assert any(line.startswith("champion  ") for line in table), table
    assert table[-1] == f"champion: what readers use today, model {digest[:12]}, {recipe}{judged_with}"


def test_the_store_s_own_questions_are_known_by_any_path(
    settings: Settings, store: Store, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(judged.parent)
    for golden, foreign in ((judged, False), (judged.parent, True)):
        own = settings.model_copy(update={"golden": golden})
        page = comparison_page(store, own, compare_arms(store, own, Path("judged")))
        assert ("may be near to what it learned from" in page) is foreign


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_an_interval_that_is_called_95_percent_is_one(
    settings_for: Callable[..., Settings], settings: Settings, store: Store, judged: Path, level: float
) -> None:
    strict = settings_for(gate={"level": level})
    assert compare_arms(store, strict, judged).gains == compare_arms(store, settings, judged).gains


def test_what_is_not_usable_of_the_store_s_own_questions_is_said_as_of_any_others(
    settings: Settings, store: Store, judged: Path, settings_for: Callable[..., Settings]
) -> None:
    with pytest.raises(SettingsError, match="ACME_RAG_GOLDEN: it is not set"):
        compare_arms(store, settings, None)
    with (judged / "qrels.jsonl").open("a") as file:
        file.write("oops\n")
    own = settings_for(golden=str(judged))
    with pytest.raises(SettingsError, match=r"has not been read yet: run `retrain`, or give it as `--golden DIR`"):
        compare_arms(store, own, None)
    resolve_golden_queries(store, own)
    assert compare_arms(store, own, None).note.startswith("1 line is unusable (qrels.jsonl line 7")


def test_a_page_never_replaces_what_people_wrote(settings: Settings, store: Store, judged: Path) -> None:
    before = (judged / "qrels.jsonl").read_bytes()
    options = ["evaluate", "--golden", str(judged), "--html", str(judged / "qrels.jsonl")]
    called = CliRunner().invoke(
        cli.main, ["--store", str(store.root), "--documents", str(settings.documents), *options]
    )
    assert called.exit_code == 1
    assert "is what people wrote: name another file" in called.output
    assert (judged / "qrels.jsonl").read_bytes() == before
