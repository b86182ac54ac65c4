"""The sensor: one run for each settled state of the documents, reverts included, and no more than two tries."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.loader import LoadingContextForTest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, ScheduleInstigatorData

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.definitions import build_definitions
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.golden import resolve_golden_queries
from acme_rag_pipeline.orchestration import automation, dead_runs, runless_events
from acme_rag_pipeline.orchestration.automation import documents_changed, nightly_retrain
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.pairs import training_set
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.synthetic import write_pairs
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.serving import decisions, promote, serve
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.warehouse import WarehouseBusy
from acme_rag_pipeline.training import candidate
from acme_rag_pipeline_tests.conftest import write_documents
from acme_rag_pipeline_tests.increments.oracle import REFRESH
from acme_rag_pipeline_tests.llm_server import ScriptedLLM, ok
from acme_rag_pipeline_tests.shallow_base import shallow_base


class Watch:
    """Ticks the sensor as the daemon would, with its cursor."""

    def __init__(self, instance: dg.DagsterInstance, pipeline: Pipeline) -> None:
        self.instance, self.pipeline, self.cursor = instance, pipeline, None
        self.keys: list[str] = []
        self.shown: list[bool] = []

    def tick(self) -> str:
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"pipeline": self.pipeline},
            definitions=build_definitions(self.pipeline),
        )
        result = documents_changed(context)
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        for event in result.asset_events:
            # As the daemon does.
            self.instance.report_runless_asset_event(event)
            if isinstance(event, dg.AssetCheckEvaluation) and event.check_name == "served_index_is_current":
                self.shown.append(event.passed)
        if result.run_requests:
            self.keys.append(str(result.run_requests[0].run_key))
            return "run"
        assert result.skip_reason is not None
        return str(result.skip_reason.skip_message)

    def red_because(self) -> str:
        """What Dagster shows beside the red check."""
        newest = runless_events._newest_evaluation(self.instance)
        assert newest is not None
        assert not newest.passed
        return str(newest.description)


@pytest.fixture
def watch(documents: Path, tmp_path: Path) -> Iterator[Watch]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Watch(instance, Pipeline(documents=str(documents), store=str(tmp_path / "store")))


def serve_now(watch: Watch) -> None:
    """Stand in for a finished refresh: what is served was made from the folder as it is."""
    settings: Settings = watch.pipeline.settings()
    store = Store(settings.store)
    result = ingest_documents(store, settings)
    with store.warehouse.write() as connection:
        record(connection, StageResult("served_index", "v", details={"sources": result.details["sources"]}), "f")


def test_a_change_runs_once_it_has_settled(watch: Watch, documents: Path) -> None:
    assert "settle" in watch.tick()
    (documents / "travel.md").write_text("# Travel\n\nStill being written.", encoding="utf-8")
    assert "settle" in watch.tick()
    assert watch.tick() == "run"
    serve_now(watch)
    assert "up to date" in watch.tick()


def test_a_revert_is_a_state_of_its_own(watch: Watch, documents: Path) -> None:
    before = (documents / "travel.md").read_text(encoding="utf-8")
    for text in (before, "# Travel\n\nNew.", before):
        (documents / "travel.md").write_text(text, encoding="utf-8")
        answers = [watch.tick(), watch.tick()]
        assert answers[-1] == "run"
        serve_now(watch)
        assert "up to date" in watch.tick()
    assert len(set(watch.keys)) == 3


def test_a_failing_state_is_tried_twice_then_ever_more_seldom_and_a_new_one_at_once(
    watch: Watch, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.tick()
    assert [watch.tick(), watch.tick()] == ["run", "run"]
    assert "next try" in watch.tick()
    waited = []
    for _ in range(9):
        began = automation.time.time()
        while (said := watch.tick()) != "run":
            assert "next try" in said
            pass_time(monkeypatch, max(10, (automation.time.time() - began) / 6))
        waited.append((automation.time.time() - began) / 60)
    assert waited == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], rel=0.2)
    (documents / "new.md").write_text("# New\n\nA new document.", encoding="utf-8")
    assert "settle" in watch.tick()
    assert watch.tick() == "run"


def pass_time(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the sensor's clock stand that much later."""
    now = automation.time.time() + seconds
    monkeypatch.setattr(automation.time, "time", lambda: now)


@pytest.mark.parametrize("cursor", ["", "no JSON", "null"])
def test_after_a_reset_of_the_cursor_a_state_is_tried_anew(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, cursor: str
) -> None:
    watch.tick()
    assert [watch.tick(), watch.tick()] == ["run", "run"]
    assert "next try" in watch.tick()
    # What a person does in the UI once the cause of the failures is mended, seconds later at the earliest.
    now = automation.time.time()
    monkeypatch.setattr(automation.time, "time", lambda: now + 10)
    watch.cursor = cursor
    assert "settle" in watch.tick()
    assert [watch.tick(), watch.tick()] == ["run", "run"]
    assert len(set(watch.keys)) == 4, "Dagster drops a run whose key it has seen before"


def test_a_folder_that_is_edited_all_the_time_is_served_in_the_end(
    watch: Watch, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit_and_tick(number: int) -> str:
        (documents / "travel.md").write_text(f"# Travel\n\nEdit {number}.", encoding="utf-8")
        return watch.tick()

    assert all("settle" in edit_and_tick(number) for number in range(5))
    with monkeypatch.context() as patch:
        patch.setattr(automation, "LONGEST_SETTLING_SECONDS", 0)
        assert edit_and_tick(5) == "run"
    assert all("settle" in edit_and_tick(number) for number in range(6, 9)), "and the wait begins again"
    assert watch.tick() == "run"


@pytest.mark.parametrize(
    ("job", "selection", "waits"),
    [
        ("refresh", None, True),
        ("retrain", None, True),
        ("__ASSET_JOB", ["base_index"], True),
        ("__ASSET_JOB", ["an_asset_of_another_code_location"], False),
        ("gate", None, False),
    ],
)
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_a_run_that_is_under_way_is_waited_for_whoever_launched_it(
    watch: Watch, job: str, selection: list[str] | None, waits: bool, status: dg.DagsterRunStatus
) -> None:
    watch.tick()
    definitions = build_definitions(watch.pipeline)
    run = watch.instance.create_run_for_job(
        # What `dagster asset materialize` and the UI run for a bare selection.
        definitions.resolve_implicit_global_asset_job_def()
        if job.startswith("__")
        else definitions.resolve_job_def(job),
        status=status,
    )
    assert run.job_name == job
    if selection:
        keys = frozenset(dg.AssetKey(name) for name in selection)
        watch.instance.delete_run(run.run_id)
        watch.instance.add_run(run._replace(asset_selection=keys))
    said = [watch.tick(), watch.tick()]
    assert said == ["a run is under way: looking again when it has ended"] * 2 if waits else said == ["run", "run"]
    watch.instance.delete_run(run.run_id)
    assert waits == (watch.tick() == "run")


def test_runs_of_another_code_location_are_not_waited_for(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (RegisteredCodeLocationOrigin(name) for name in ("here", "there"))
    monkeypatch.setattr(dg.SensorEvaluationContext, "code_location_origin", here)
    watch.tick()
    for origin, answer in ((there, "run"), (here, "under way")):
        named = RemoteJobOrigin(RemoteRepositoryOrigin(origin, "__repository__"), "refresh")
        run = add_run(watch, "refresh", remote_job_origin=named)
        assert answer in watch.tick()
        watch.instance.delete_run(run.run_id)


def add_run(watch: Watch, job: str, selection: list[str] | None = None, **changed: Any) -> dg.DagsterRun:
    """A run that has started, as the instance keeps it."""
    known = build_definitions(watch.pipeline).resolve_job_def("gate")
    run = watch.instance.create_run_for_job(known, status=dg.DagsterRunStatus.STARTED)
    watch.instance.delete_run(run.run_id)
    chosen = frozenset(map(dg.AssetKey, selection)) if selection else None
    return watch.instance.add_run(run._replace(job_name=job, asset_selection=chosen, **changed))


def test_a_rollback_from_the_command_line_is_shown_once(watch: Watch, store: Store) -> None:
    settings: Settings = watch.pipeline.settings()
    for stage in REFRESH:
        stage(store, settings)
    base = decisions.champion(store, settings)
    decisions.append(store, encoder=base.encoder, recipe="hybrid", verdict=decisions.PROMOTED, reason="by hand")
    serve.serve(store, settings)
    watch.tick()
    promoted = dg.AssetKey("promoted_retriever")
    serve.rollback(store, settings)
    watch.tick()
    shown = watch.instance.get_latest_materialization_event(promoted)
    assert shown is not None
    assert shown.asset_materialization is not None
    assert shown.asset_materialization.metadata["verdict"].value == decisions.ROLLED_BACK
    went_back = decisions.decisions(store)[-1]
    assert shown.asset_materialization.tags == {
        "dagster/data_version": promote.data_version_of(went_back),
        "dagster/code_version": promote.CODE_VERSION,
        "dagster/input_data_version/evaluation_report": "NULL",
        "dagster/input_event_pointer/evaluation_report": "NULL",
    }
    served = watch.instance.get_latest_materialization_event(dg.AssetKey("served_index"))
    assert served is not None
    assert served.asset_materialization is not None
    assert served.asset_materialization.metadata["recipe"].value == "dense"
    assert served.asset_materialization.metadata["store"].value == str(store.root)
    check = watch.instance.get_latest_asset_check_evaluation_record(
        dg.AssetCheckKey(promoted, "candidate_was_promoted")
    )
    assert check is not None
    watch.cursor = None
    watch.tick()
    for asset, event in (("promoted_retriever", shown), ("served_index", served)):
        again = watch.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert again is not None
        assert again.timestamp == event.timestamp


def test_after_a_rollback_nothing_that_it_brought_up_to_date_is_called_stale(watch: Watch, store: Store) -> None:
    settings: Settings = watch.pipeline.settings()
    definitions = build_definitions(watch.pipeline)
    for stage in REFRESH:
        stage(store, settings)
    base = decisions.champion(store, settings)
    decisions.append(store, encoder=base.encoder, recipe="hybrid", verdict=decisions.PROMOTED, reason="by hand")
    for stage in ("training_set", "evaluation_report"):
        with store.warehouse.write() as connection:
            record(connection, StageResult(stage, "v1"), "f")
        as_a_run_would = dg.AssetMaterialization(stage, tags={"dagster/data_version": "v1"})
        watch.instance.report_runless_asset_event(as_a_run_would)
    refresh = definitions.resolve_job_def("refresh")
    assert refresh.execute_in_process(instance=watch.instance).success
    watch.tick()
    serve.rollback(store, settings)
    watch.tick()
    graph = definitions.resolve_asset_graph()
    told = CachingStaleStatusResolver(
        instance=watch.instance, asset_graph=graph, loading_context=LoadingContextForTest(watch.instance)
    )
    for asset in ("promoted_retriever", "served_index"):
        assert [(c.category.name, c.reason) for c in told.get_stale_causes(dg.AssetKey(asset))] == []


def test_what_a_run_over_another_store_decided_is_not_taken_for_a_decision_of_this_one(
    watch: Watch, store: Store, tmp_path: Path
) -> None:
    settings: Settings = watch.pipeline.settings()
    for stage in REFRESH:
        stage(store, settings)
    base = decisions.champion(store, settings)
    promoted = dg.AssetKey("promoted_retriever")
    decisions.append(store, encoder=base.encoder, recipe="hybrid", verdict=decisions.PROMOTED, reason="by hand")
    serve.serve(store, settings)
    watch.tick()
    other = {"decision": 7, "decided_at": "2020-01-01T00:00:00+00:00", "store": dg.MetadataValue.path("/another")}
    watch.instance.report_runless_asset_event(dg.AssetMaterialization(promoted, metadata=other))
    shown = watch.instance.get_latest_materialization_event(promoted)
    watch.tick()
    again = watch.instance.get_latest_materialization_event(promoted)
    assert shown is not None
    assert again is not None
    assert again.timestamp == shown.timestamp, "this store's own is recorded"
    # The store is made anew: its numbers begin at 1 again.
    with store.warehouse.write() as connection:
        connection.execute("UPDATE promotions SET decided_at = decided_at + INTERVAL 1 HOUR, reason = 'anew'")
    watch.tick()
    again = watch.instance.get_latest_materialization_event(promoted)
    assert again is not None
    assert again.asset_materialization is not None
    assert again.asset_materialization.metadata["reason"].value == "anew"


def test_a_decision_whose_run_was_killed_before_its_event_is_shown(watch: Watch, store: Store) -> None:
    settings: Settings = watch.pipeline.settings()
    for stage in REFRESH:
        stage(store, settings)
    base = decisions.champion(store, settings)
    promoted = dg.AssetKey("promoted_retriever")
    watch.tick()
    assert watch.instance.get_latest_materialization_event(promoted) is None, "nothing was decided"
    decisions.append(store, encoder=base.encoder, recipe="hybrid", verdict=decisions.PROMOTED, reason="it is better")
    run = add_run(watch, "retrain")
    watch.tick()
    assert watch.instance.get_latest_materialization_event(promoted) is None, "a run records its decisions itself"
    watch.instance.report_run_failed(run)
    watch.tick()
    shown = watch.instance.get_latest_materialization_event(promoted)
    assert shown is not None
    assert shown.asset_materialization is not None
    assert shown.asset_materialization.metadata["reason"].value == "it is better"


def test_a_warehouse_that_a_person_holds_open_turns_red(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_now(watch)
    assert "up to date" in watch.tick()
    monkeypatch.setattr(automation, "_served_state", raises_busy)
    assert "process 4711" in watch.tick()
    assert watch.shown == []
    run = add_run(watch, "refresh")
    pass_time(monkeypatch, 16 * 60)
    monkeypatch.setattr(dead_runs, "FIRST_SIGN_WITHIN_SECONDS", 3600)
    watch.tick()
    assert watch.shown == [], "a run of ours may write for long"
    watch.instance.report_run_failed(run)
    watch.tick()
    assert watch.shown == [False]
    assert "process 4711" in watch.red_because()


def raises_busy(store: Store) -> str | None:
    raise WarehouseBusy("warehouse.duckdb is held by process 4711 for more than 2 s")


def test_an_index_that_lost_a_file_is_refreshed(watch: Watch) -> None:
    settings: Settings = watch.pipeline.settings()
    store = Store(settings.store)
    for stage in REFRESH:
        stage(store, settings)
    assert "up to date" in watch.tick()
    for file in store.lancedb.rglob("data/*.lance"):
        file.write_bytes(b"")
    assert [watch.tick(), watch.tick()][-1] == "run"
    serve.serve(store, settings)
    assert "up to date" in watch.tick()


def test_a_gate_run_that_was_killed_before_it_could_show_itself_ends_as_failed(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(watch, "gate")
    stranger = add_run(watch, "a_job_of_another_project")
    monkeypatch.setattr(dead_runs, "FIRST_SIGN_WITHIN_SECONDS", 0)
    watch.tick()
    ended = {run.run_id: run.status for run in watch.instance.get_runs()}
    assert ended[run.run_id] is dg.DagsterRunStatus.FAILURE
    assert ended[stranger.run_id] is dg.DagsterRunStatus.STARTED


def test_the_nightly_tick_fails_a_dead_run_too(documents: Path, tmp_path: Path) -> None:
    """The document sensor may be switched off."""
    pipeline = Pipeline(documents=str(documents), store=str(tmp_path / "store"))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        watch = Watch(instance, pipeline)
        serve_now(watch)
        store = Store(pipeline.settings().store)
        split_documents(store, pipeline.settings())
        run = add_run(watch, "refresh")
        dead_runs.show(instance, store, run.run_id)
        dead_runs.let_go()
        # Closed, or what it opened of the instance would be asked by the tests that follow.
        with dg.build_schedule_context(instance=instance, resources={"pipeline": pipeline}) as context:
            nightly_retrain(context)
        assert instance.get_runs()[0].status is dg.DagsterRunStatus.FAILURE


def test_a_missing_folder_is_said_and_turns_red_when_it_stays_away(
    watch: Watch, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_now(watch)
    assert "up to date" in watch.tick()
    documents.rename(documents.parent / "moved")
    assert "ACME_RAG_DOCUMENTS" in watch.tick()
    assert watch.shown == []
    pass_time(monkeypatch, 16 * 60)
    assert [watch.tick(), watch.tick()] == [watch.tick()] * 2
    assert watch.shown == [False]
    assert "ACME_RAG_DOCUMENTS" in watch.red_because()
    (documents.parent / "moved").rename(documents)
    assert "up to date" in watch.tick()
    assert watch.shown == [False, True]


def test_a_wrong_setting_turns_red_in_the_sensor_and_fails_the_nightly_tick(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_RAG_GATE__MINIMUM_EFFECT", "much")
    assert "ACME_RAG_GATE__MINIMUM_EFFECT" in watch.tick()
    pass_time(monkeypatch, 16 * 60)
    watch.tick()
    assert watch.shown == [False]
    context = dg.build_schedule_context(instance=watch.instance, resources={"pipeline": watch.pipeline})
    with pytest.raises(SettingsError, match="ACME_RAG_GATE__MINIMUM_EFFECT"):
        nightly_retrain(context)


def test_the_check_turns_red_when_the_index_lags_and_green_when_it_has_caught_up(watch: Watch, documents: Path) -> None:
    for _ in range(3):
        watch.tick()
    assert watch.shown == []
    assert "next try" in watch.tick()
    watch.tick()
    assert watch.shown == [False]
    watch.cursor = None
    serve_now(watch)
    watch.tick()
    watch.tick()
    assert watch.shown == [False, True]


def test_a_lag_of_many_minutes_turns_red_even_while_a_run_is_under_way(
    watch: Watch, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_RAG_AUTOMATION__LATE_AFTER_MINUTES", "0.0000001")
    watch.tick()
    watch.tick()
    assert watch.shown == [False]


def test_a_folder_that_changes_all_the_time_is_not_late_while_refreshes_succeed_and_red_when_they_do_not(
    watch: Watch, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_RAG_AUTOMATION__LATE_AFTER_MINUTES", "10")
    started = automation.time.time()
    for minute in range(0, 60, 5):
        monkeypatch.setattr(automation.time, "time", lambda passed=minute: started + 60 * passed)
        (documents / "travel.md").write_text(f"# Travel\n\nMinute {minute}.", encoding="utf-8")
        serve_now(watch)
        (documents / "travel.md").write_text(f"# Travel\n\nMinute {minute} and a half.", encoding="utf-8")
        watch.tick()
    assert watch.shown == []
    monkeypatch.setattr(automation.time, "time", lambda: started + 60 * 75)
    watch.tick()
    assert watch.shown == [False]


def test_the_schedule_retrains_for_changed_documents_and_for_what_people_judged(
    documents: Path, tmp_path: Path
) -> None:
    queries, qrels = tmp_path / "golden/queries.jsonl", tmp_path / "golden/qrels.jsonl"
    queries.parent.mkdir()
    queries.write_text('{"query_id": "a", "query": "how many FLEX days"}\n', encoding="utf-8")
    qrels.write_text('{"query_id": "a", "doc_path": "hr/leave.md"}\n', encoding="utf-8")
    pipeline = Pipeline(
        documents=str(documents),
        store=str(tmp_path / "store"),
        golden=str(queries.parent),
        tuning={"training": {"minimum_pairs": 10_000}},
    )
    settings = pipeline.settings()
    store = Store(settings.store)

    def answer() -> str:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_schedule_context(instance=instance, resources={"pipeline": pipeline})
            result = nightly_retrain(context)
        return "run" if isinstance(result, dg.RunRequest) else str(result.skip_message)

    def train() -> None:
        for stage in (resolve_curated_pairs, write_pairs, training_set.build_training_set, candidate.train_candidate):
            stage(store, settings)

    for stage in (ingest_documents, split_documents, index.index_base):
        stage(store, settings)
    assert answer() == "run"
    resolve_golden_queries(store, settings)
    train()
    assert "fewer than" in answer()
    with queries.open("a", encoding="utf-8") as file:
        file.write('{"query_id": "b", "query": "hotel limit in London"}\n')
    assert answer() == "run"
    resolve_golden_queries(store, settings)
    assert answer() == "run", "a retrain that was killed before it trained dealt with nothing"
    train()
    assert "fewer than" in answer()
    (documents / "travel.md").unlink()
    ingest_documents(store, settings)
    split_documents(store, settings)
    assert answer() == "run"


@pytest.mark.parametrize(
    ("given", "again"), [({}, True), ({"max_calls": 1}, False)], ids=["an outage", "a budget that is spent"]
)
def test_the_schedule_asks_again_what_a_night_without_the_llm_left(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, int], again: bool
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    pipeline = Pipeline(documents=str(documents), store=str(tmp_path / "store"), tuning={"pairs": given})
    settings = pipeline.settings()
    store = Store(settings.store)
    for stage in (ingest_documents, split_documents, write_pairs):
        stage(store, settings)
    # The rest of that retrain, which dealt with the chunks of the day.
    with store.warehouse.write() as connection:
        connection.execute("INSERT INTO trained_chunks(chunk_id) SELECT chunk_id FROM chunks")

    assert asks_for_a_run(pipeline) == again
    with ScriptedLLM(lambda *_: ok()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        write_pairs(store, Pipeline(documents=str(documents), store=str(tmp_path / "store")).settings())
    assert not asks_for_a_run(pipeline)


def asks_for_a_run(pipeline: Pipeline) -> bool:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance=instance, resources={"pipeline": pipeline})
        return isinstance(nightly_retrain(context), dg.RunRequest)


@pytest.mark.parametrize(
    ("weight", "llm", "runs"),
    [(1.0, True, True), (0.0, True, False), (1.0, False, False)],
    ids=["queries are searched", "served without queries", "no LLM any more"],
)
def test_one_new_passage_is_asked_about_at_night_where_readers_search_queries(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float, llm: bool, runs: bool
) -> None:
    if llm:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    tuning = {"automation": {"retrain_changed_share": 0.9}}
    pipeline = Pipeline(documents=str(documents), store=str(tmp_path / "store"), tuning=tuning)
    settings = pipeline.settings()
    store = Store(settings.store)
    for stage in REFRESH:
        stage(store, settings)
    with store.warehouse.write() as connection:
        connection.execute("INSERT INTO trained_chunks(chunk_id) SELECT chunk_id FROM chunks")
    base = decisions.champion(store, settings).encoder
    decisions.append(
        store, encoder=base, recipe="hybrid", fusion={"expansion_weight": weight}, verdict="promoted", reason="by hand"
    )
    assert not asks_for_a_run(pipeline)
    (documents / "parking.md").write_text("# Parking\n\nThe garage under the hub has forty places.\n", encoding="utf-8")
    for stage in (ingest_documents, split_documents):
        stage(store, settings)
    assert asks_for_a_run(pipeline) == runs


def test_a_changed_setting_of_a_refresh_runs_once_and_so_does_its_way_back(
    watch: Watch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refresh() -> None:
        for stage in REFRESH:
            stage(store, watch.pipeline.settings())

    refresh()
    assert "up to date" in watch.tick()
    for value in ("120", "119", "", "2000"):
        monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", value)
        assert [watch.tick(), watch.tick()][-1] == "run"
        refresh()
        assert "up to date" in watch.tick()
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "119")
    watch.tick()
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "2000")
    assert "up to date" in watch.tick(), "back before a run began"
    for name in ("LOCK_SECONDS", "PAIRS__CONCURRENCY", "TRAINING__EPOCHS", "GATE__MINIMUM_UNITS"):
        monkeypatch.setenv(f"ACME_RAG_{name}", "7")
    assert "up to date" in watch.tick(), "no business of a refresh"


def test_after_a_refresh_an_index_of_an_earlier_version_is_compared_with_the_settings_too(
    watch: Watch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refresh() -> None:
        for stage in REFRESH:
            stage(store, watch.pipeline.settings())

    refresh()
    with store.warehouse.write() as connection:
        nothing_noted = '{"details": {"settings_key": null, "made_with": null}}'
        connection.execute("UPDATE stages SET summary = json_merge_patch(summary, ?)", [nothing_noted])
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "120")
    assert "up to date" in watch.tick(), "nobody knows what it was made with"
    monkeypatch.delenv("ACME_RAG_CHUNKING__MAX_TOKENS")
    refresh()
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "120")
    assert [watch.tick(), watch.tick()][-1] == "run"


def test_settings_that_no_refresh_works_with_are_tried_ever_more_seldom_and_turn_red(
    watch: Watch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Settings = watch.pipeline.settings()
    for stage in REFRESH:
        stage(store, settings)
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "120")
    assert [watch.tick() == "run" for _ in range(3)] == [False, True, True]
    assert "the settings of the sensor" in watch.tick()
    assert watch.shown == [False]
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "119")
    assert [watch.tick(), watch.tick()][-1] == "run", "other settings are a state of their own"
    monkeypatch.delenv("ACME_RAG_CHUNKING__MAX_TOKENS")
    assert "up to date" in watch.tick()
    assert watch.shown == [False, True]


@pytest.fixture
def night(documents: Path, tmp_path: Path) -> Iterator[tuple[Watch, dg.ScheduleEvaluationContext]]:
    """A tick of the schedule over a store with new chunks; an instance in memory is given to no schedule."""
    pipeline = Pipeline(documents=str(documents), store=str(tmp_path / "store"))
    for stage in (ingest_documents, split_documents):
        stage(Store(pipeline.settings().store), pipeline.settings())
    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        dg.build_schedule_context(instance=instance, resources={"pipeline": pipeline}) as context,
    ):
        yield Watch(instance, pipeline), context


@pytest.mark.parametrize(
    ("job", "selection", "tags", "waits"),
    [
        ("retrain", None, {}, True),
        ("__ASSET_JOB", ["training_set", "fine_tuned_model"], {}, True),
        ("__ASSET_JOB", ["base_index"], {}, False),
        ("refresh", None, {}, False),
        ("retrain", None, {"acme_rag/store": "/another"}, False),
    ],
)
def test_a_retrain_that_waits_or_works_is_not_asked_for_again(
    night: tuple[Watch, dg.ScheduleEvaluationContext],
    job: str,
    selection: list[str] | None,
    tags: dict[str, str],
    waits: bool,
) -> None:
    watch, context = night
    assert isinstance(nightly_retrain(context), dg.RunRequest)
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), job)
    for status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED):
        run = add_run(watch, job, selection, status=status, tags=tags, remote_job_origin=origin)
        answer = nightly_retrain(context)
        assert isinstance(answer, dg.SkipReason) == waits
        assert not waits or "a retrain is under way" in str(answer)
        watch.instance.delete_run(run.run_id)
    assert isinstance(nightly_retrain(context), dg.RunRequest)


def test_a_retrain_of_a_code_location_without_this_schedule_is_another_one(
    night: tuple[Watch, dg.ScheduleEvaluationContext],
) -> None:
    watch, context = night
    here, there = (
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(name), "__repository__") for name in ("here", "there")
    )
    origin = RemoteInstigatorOrigin(here, "nightly_retrain")
    watch.instance.add_instigator_state(
        InstigatorState(origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, ScheduleInstigatorData("0 2 * * *"))
    )
    for repository, kind in ((there, dg.RunRequest), (here, dg.SkipReason)):
        run = add_run(watch, "retrain", remote_job_origin=RemoteJobOrigin(repository, "retrain"))
        assert isinstance(nightly_retrain(context), kind)
        watch.instance.delete_run(run.run_id)


@pytest.fixture(scope="module")
def retrained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents and a store that a retrain has gone over."""
    root = tmp_path_factory.mktemp("retrained")
    write_documents(root / "documents")
    retrain_in(root)
    return root


@pytest.fixture
def retrained(retrained_once: Path, tmp_path: Path) -> tuple[Callable[[], bool], Callable[[], None]]:
    """Whether the schedule asks for a retrain with the settings in the environment, and such a retrain; one has been."""
    shutil.copytree(retrained_once, tmp_path, dirs_exist_ok=True)
    return lambda: asks_for_a_run(pipeline_in(tmp_path)), lambda: retrain_in(tmp_path)


def pipeline_in(root: Path) -> Pipeline:
    few = {"training": {"minimum_pairs": 10_000}}
    return Pipeline(documents=str(root / "documents"), store=str(root / "store"), tuning=few)


def retrain_in(root: Path) -> None:
    """As far as a training that finds too few pairs."""
    settings = pipeline_in(root).settings()
    for stage in (
        ingest_documents, split_documents, resolve_curated_pairs, write_pairs, resolve_golden_queries, index.index_base,
        training_set.build_training_set, candidate.train_candidate,
    ):  # fmt: skip
        stage(Store(settings.store), settings)


@pytest.mark.parametrize(
    "changed",
    [
        "ACME_RAG_TRAINING__EPOCHS",
        "ACME_RAG_PAIRS__QUERIES_PER_CHUNK",
        "ACME_RAG_PAIRS__HARD_NEGATIVES",
        "ACME_RAG_CHUNKING__NEAR_DUPLICATE_SIMILARITY",
    ],
)
def test_the_schedule_retrains_once_for_a_changed_setting_whatever_comes_of_it(
    retrained: tuple[Callable[[], bool], Callable[[], None]], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    asked, retrain = retrained
    assert not asked()
    monkeypatch.setenv(changed, "1")
    assert asked()
    retrain()
    assert not asked()
    monkeypatch.delenv(changed)
    assert asked(), "the way back is a change, too"


def test_the_schedule_retrains_for_another_base_model_and_other_code_but_not_for_another_place_of_the_same(
    retrained: tuple[Callable[[], bool], Callable[[], None]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, retrain = retrained
    monkeypatch.setenv("ACME_RAG_BASE_MODEL", str(shallow_base()))
    assert asked()
    retrain()
    assert not asked()
    monkeypatch.setenv("ACME_RAG_BASE_MODEL", str(shutil.copytree(shallow_base(), tmp_path / "elsewhere")))
    assert not asked()
    monkeypatch.setattr(candidate, "CODE_VERSION", "of tomorrow")
    assert asked()


def test_what_changes_no_candidate_is_no_reason_for_a_retrain(
    retrained: tuple[Callable[[], bool], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _ = retrained
    for name in (
        "LOCK_SECONDS", "LLM", "TRAINING__GRADIENT_CACHE", "PAIRS__CONCURRENCY", "PAIRS__MAX_CALLS", "PAIRS__AUDIENCE",
        "GATE__MINIMUM_UNITS", "EVALUATION__GOLDEN_MINIMUM_QUERIES", "SERVING__KEEP_PROMOTIONS", "AUTOMATION__MAX_TRIES",
    ):  # fmt: skip
        monkeypatch.setenv(f"ACME_RAG_{name}", "1" if "CACHE" in name else "9")
    assert not asked()


def test_an_llm_that_is_new_and_down_is_tried_by_the_rules_of_an_outage(
    retrained: tuple[Callable[[], bool], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, retrain = retrained
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert asked()
    retrain()
    monkeypatch.setattr(automation.synthetic, "left_by_the_llm", lambda store: 0.0)
    assert not asked(), "nothing but the outage asks for another"


def test_a_retrain_of_an_earlier_version_is_made_up_for_once(
    retrained: tuple[Callable[[], bool], Callable[[], None]], store: Store
) -> None:
    asked, retrain = retrained
    with store.warehouse.write() as connection:
        connection.execute("DELETE FROM retrained_with")
        connection.execute(
            'UPDATE stages SET summary = json_merge_patch(summary, \'{"details": {"settings_key": null}}\')'
        )
    assert asked()
    retrain()
    assert not asked()


def test_a_decision_that_is_not_served_yet_is_behind(watch: Watch) -> None:
    settings: Settings = watch.pipeline.settings()
    store = Store(settings.store)
    for stage in REFRESH:
        stage(store, settings)
    assert "up to date" in watch.tick()
    served = decisions.champion(store, settings)
    decisions.append(
        store, encoder=served.encoder, recipe="hybrid", fusion={"rrf_k": 9}, verdict="promoted", reason="by hand"
    )
    assert [watch.tick(), watch.tick()][-1] == "run"
    serve.serve(store, settings)
    assert "up to date" in watch.tick()
