"""The code location: it loads without heavy libraries and holds exactly what the contract names."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import dagster as dg
import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.definitions import build_definitions
from acme_rag_pipeline.documents.source import DocumentsFolderError
from acme_rag_pipeline.orchestration.resources import Pipeline, plain_failures
from acme_rag_pipeline.pairs.curated_file import ReviewUnusable
from acme_rag_pipeline.retrieval.retriever import ArmMissing
from acme_rag_pipeline.serving.serve import NoSuchPromotion
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.store.layout import StoreBusy, StoreUnusable
from acme_rag_pipeline.store.models import ModelDamaged
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged
from acme_rag_pipeline.store.stages import UpstreamMissing
from acme_rag_pipeline.store.unreadable_table import TableUnreadable
from acme_rag_pipeline.store.warehouse import Warehouse, WarehouseBusy, WarehouseUnusable
from acme_rag_pipeline_tests.conftest import PROJECT

GROUPS = {
    "documents": {"documents", "chunks"},
    "training_data": {"curated_pairs", "synthetic_pairs", "training_set"},
    "evaluation": {"golden_queries", "evaluation_report"},
    "model": {"fine_tuned_model"},
    "indexes": {"base_index", "fine_tuned_index"},
    "serving": {"promoted_retriever", "served_index"},
}
HEAVY = (
    "torch",
    "sentence_transformers",
    "transformers",
    "lancedb",
    "pandas",
    "openai",
    "matplotlib",
    "sklearn",
    "scipy",
)


def test_loading_the_definitions_imports_nothing_heavy() -> None:
    program = f"import sys, acme_rag_pipeline.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_that_is_imported_is_declared_and_pinned() -> None:
    imported: set[str] = set()
    for path in (PROJECT / "acme_rag_pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in ("pdf", "office", "lora") for line in extras[name])]
    declared = {canonicalize_name(found.name): found for found in map(Requirement, lines)}
    pins = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in pins if line[:1] not in ("", "#")}
    providers = importlib.metadata.packages_distributions()
    for module in sorted(imported - sys.stdlib_module_names - {"acme_rag_pipeline"}):
        names = {canonicalize_name(name) for name in providers[module]} & declared.keys()
        assert names, f"{module} is imported and not declared"
        assert all(declared[name].specifier.contains(pinned[name]) for name in names), module


@pytest.mark.parametrize("first", ["", "duckdb, "])
def test_a_process_that_used_the_definitions_ends_without_a_word(first: str) -> None:
    # DuckDB's binding reports its objects as leaked when the frozen heap holds them.
    program = f"import {first}acme_rag_pipeline.definitions, duckdb; duckdb.connect().execute('SELECT 1').fetchall()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_command_line_imports_nothing_heavy_for_its_help() -> None:
    program = f"import sys, acme_rag_pipeline.cli; print([m for m in {(*HEAVY, 'dagster')!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "error",
    [
        ArmMissing,
        DocumentsFolderError,
        ModelDamaged,
        NoSuchPromotion,
        NothingPromoted,
        PointerDamaged,
        ReviewUnusable,
        SettingsError,
        StoreBusy,
        StoreUnusable,
        TableUnreadable,
        UpstreamMissing,
        WarehouseBusy,
        WarehouseUnusable,
    ],
)
def test_what_a_person_can_mend_is_one_sentence_on_the_command_line_and_in_a_run(error: type[Exception]) -> None:
    @click.group(cls=type(main))
    def program() -> None:
        """Of one command."""

    @program.command()
    def fail() -> None:
        raise error("mend this")

    called = CliRunner().invoke(program, ["fail"])
    assert (called.exit_code, called.output) == (1, "acme-rag: mend this\n")
    with pytest.raises(dg.Failure) as failed, plain_failures():
        raise error("mend this")
    assert (failed.value.description, failed.value.allow_retries) == ("mend this", False)


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="no such thing"), plain_failures():
        raise ValueError("no such thing")


def test_every_asset_is_described_owned_and_versioned() -> None:
    graph = build_definitions().resolve_asset_graph()
    found: dict[str, set[str]] = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        found.setdefault(str(node.group_name), set()).add(key.to_user_string())
        assert node.description
        assert node.kinds
        assert node.owners
        assert node.code_version
        assert not node.is_partitioned
    assert found == GROUPS


def test_the_columns_of_an_asset_are_those_of_its_table(tmp_path: Path) -> None:
    graph = build_definitions().resolve_asset_graph()
    told = {key.to_user_string(): graph.get(key).metadata for key in graph.get_all_asset_keys()}
    with_table = {name: metadata for name, metadata in told.items() if "dagster/column_schema" in metadata}
    assert len(with_table) == 8
    with Warehouse(tmp_path / "warehouse.duckdb").read() as connection:
        for metadata in with_table.values():
            table = str(metadata["dagster/table_name"]).removeprefix("warehouse.main.")
            there = connection.execute(f"SELECT name, type, \"notnull\" FROM pragma_table_info('{table}')").fetchall()
            declared = metadata["dagster/column_schema"].columns
            assert [(column.name, not column.constraints.nullable) for column in declared] == [
                (name, required) for name, _, required in there
            ]
            same = {"TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE"}
            assert [same.get(column.type, column.type) for column in declared] == [kind for _, kind, _ in there]


def test_a_misspelt_group_of_a_run_configuration_is_an_error_that_names_the_nearest() -> None:
    assert Pipeline(tuning={"pairs": {"max_calls": 5}}).settings().pairs.max_calls == 5
    with pytest.raises(dg.Failure, match="`pair` is no setting; did you mean ACME_RAG_PAIRS"):
        Pipeline(tuning={"pair": {"max_calls": 5}}).settings()


def test_jobs_sensor_and_schedule_are_there_and_on() -> None:
    repository = build_definitions().get_repository_def()
    assert {"refresh", "retrain", "gate"} <= set(repository.job_names)
    refreshed = repository.get_job("refresh").asset_layer.selected_asset_keys
    assert {key.to_user_string() for key in refreshed} == {
        "documents", "chunks", "base_index", "fine_tuned_index", "served_index"
    }  # fmt: skip
    assert repository.get_sensor_def("documents_changed").default_status is dg.DefaultSensorStatus.RUNNING
    for schedule in ("nightly_retrain", "daily_refresh"):
        assert repository.get_schedule_def(schedule).default_status is dg.DefaultScheduleStatus.RUNNING
    graph = build_definitions().resolve_asset_graph()
    watched = {key for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy is not None}
    assert watched == refreshed


def test_one_run_goes_on_at_a_time_and_none_for_ever(tmp_path: Path) -> None:
    shutil.copyfile(PROJECT / "dagster.yaml", tmp_path / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 1
        assert instance.run_monitoring_max_runtime_seconds == 7 * 86_400


def test_the_graph_is_the_one_of_the_contract() -> None:
    graph = build_definitions().resolve_asset_graph()
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert parents["chunks"] == {"documents"}
    assert parents["training_set"] == {"chunks", "curated_pairs", "synthetic_pairs", "golden_queries", "base_index"}
    assert parents["fine_tuned_model"] == {"training_set"}
    assert parents["promoted_retriever"] == {"evaluation_report"}
    assert "promoted_retriever" in parents["served_index"]
