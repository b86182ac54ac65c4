"""Old runs go, with their files; what the UI shows of an asset stays."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.orchestration.prune import main, prune

OLD = datetime.now(UTC) - timedelta(days=100)
LIMIT = datetime.now(UTC) - timedelta(days=90)


@dg.asset
def made_often() -> None:
    """An asset of each run."""


@dg.asset
def made_once() -> None:
    """An asset of the first run."""


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        yield instance


def run(instance: dg.DagsterInstance, *assets: dg.AssetsDefinition, created: datetime | None = None) -> str:
    """A finished run; its age is what the run storage says."""
    run_id = dg.materialize(assets, instance=instance).run_id
    if created is not None:
        with instance.run_storage.connect() as connection:  # type: ignore[attr-defined]
            when = created.strftime("%Y-%m-%d %H:%M:%S.%f")
            connection.exec_driver_sql("UPDATE runs SET create_timestamp = ? WHERE run_id = ?", (when, run_id))
    return run_id


def test_old_runs_go_but_for_those_that_made_what_is_shown(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    first = run(instance, made_once, made_often, created=OLD)
    second = run(instance, made_often, created=OLD)
    young = [run(instance, made_often) for _ in range(2)]
    files = tmp_path / "history/runs"
    assert (files / f"{second}.db").exists()
    assert prune(instance, LIMIT) == 1
    assert {known.run_id for known in instance.get_runs()} == {first, *young}
    assert not list(files.glob(f"{second}*"))
    assert (files / f"{first}.db").exists()
    for asset in (made_once, made_often):
        assert instance.get_latest_materialization_event(asset.key) is not None
    assert prune(instance, LIMIT) == 0


def test_a_run_that_goes_on_stays_however_old_it_is(instance: dg.DagsterInstance) -> None:
    run_id = run(instance, made_often, created=OLD)
    run(instance, made_often)
    ended = instance.get_run_by_id(run_id)
    assert ended is not None
    instance.delete_run(run_id)
    instance.add_run(ended._replace(status=dg.DagsterRunStatus.STARTED))
    assert prune(instance, datetime.now(UTC) + timedelta(days=1)) == 0


def test_the_command_says_how_many_it_deleted(instance: dg.DagsterInstance, capsys: pytest.CaptureFixture[str]) -> None:
    run(instance, made_often, created=OLD)
    run(instance, made_often)
    main(["--days", "200"])
    main(["--days", "90"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]
    with pytest.raises(SystemExit):
        main(["--days", "0"])


def test_a_dagster_without_what_it_needs_is_one_sentence_and_nothing_is_deleted(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dg.materialize([made_once], instance=instance).success
    monkeypatch.delattr("dagster._core.storage.event_log.SqliteEventLogStorage")
    with pytest.raises(UserError, match=r"install the Dagster that constraints\.txt names$"):
        prune(instance, datetime.now(UTC) + timedelta(days=1))
    assert len(instance.get_run_ids()) == 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
