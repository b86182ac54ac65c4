"""Exactly as much as needed: a second run does nothing, and a change of settings or code redoes only what depends on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.chunking import chunks
from acme_rag_pipeline.documents import ingest
from acme_rag_pipeline.evaluation import evaluate, golden
from acme_rag_pipeline.pairs import curated, synthetic, training_set
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.serving import promote, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.training import candidate
from acme_rag_pipeline_tests.conftest import PROJECT, files_of, write_documents
from acme_rag_pipeline_tests.increments import oracle
from acme_rag_pipeline_tests.shallow_base import shallow_base

pytestmark = pytest.mark.slow
STAGES: tuple[oracle.Stage, ...] = (
    *oracle.EVERYTHING[:-2],
    candidate.train_candidate,
    index.index_candidate,
    evaluate.evaluate,
    promote.decide_promotion,
    serve.serve,
)
TUNING: dict[str, dict[str, Any]] = {
    "training": {"epochs": 1, "minimum_pairs": 5, "batch_size": 8},
    "pairs": {"queries_per_chunk": 2},
}
# What every process of a run writes down when it ends: the modules that it imported, and whose they were.
SITECUSTOMIZE = """
import atexit, importlib.metadata, json, os, pathlib, sys
def tell():
    ours = sys.modules.get("acme_rag_pipeline")
    told = {
        "modules": sorted(sys.modules),
        "package": ours and ours.__path__[0],
        "version": importlib.metadata.version("acme-rag-pipeline"),
    }
    pathlib.Path(os.environ["TELL"], f"{os.getpid()}.json").write_text(json.dumps(told))
atexit.register(tell)
"""


def settings_of(root: Path, **given: Any) -> Settings:
    named = {"documents": "documents", "store": "store", "generator": "offline", "lock_seconds": 10}
    named["base_model"] = given.pop("base_model", str(shallow_base()))
    tuning = {name: TUNING.get(name, {}) | given.pop(name, {}) for name in {*TUNING, *given}}
    return Settings.load(root=root, **named, **tuning)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents and a store in which everything has run."""
    root = tmp_path_factory.mktemp("built")
    write_documents(root / "documents")
    oracle.run(Store(root / "store"), settings_of(root), STAGES)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(built, tmp_path / "copy")


def redone(root: Path, stages: Sequence[oracle.Stage] = STAGES, **given: Any) -> set[str]:
    """Stages that had to work."""
    results = oracle.run(Store(root / "store"), settings_of(root, **given), stages)
    return {name for name, result in results.items() if not result.unchanged}


def test_a_second_run_from_another_checkout_and_version_changes_no_byte_and_loads_no_model(
    built: Path, tmp_path: Path
) -> None:
    checkout, told, home = (tmp_path / name for name in ("checkout", "told", "dagster_home"))
    shutil.copytree(PROJECT / "acme_rag_pipeline", checkout / "acme_rag_pipeline")
    (checkout / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    metadata = checkout / "acme_rag_pipeline-9.9.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: acme-rag-pipeline\nVersion: 9.9\n", encoding="utf-8")
    told.mkdir()
    home.mkdir()
    tuned = {f"ACME_RAG_{group}__{name}".upper(): v for group, knobs in TUNING.items() for name, v in knobs.items()}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACME_RAG_")} | {
        "ACME_RAG_ROOT": str(tmp_path),
        "ACME_RAG_DOCUMENTS": str(built / "documents"),
        "ACME_RAG_STORE": str(built / "store"),
        "ACME_RAG_GENERATOR": "offline",
        "ACME_RAG_BASE_MODEL": str(shallow_base()),
        "DAGSTER_HOME": str(home),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "PYTHONPATH": str(checkout),
        "TELL": str(told),
        **{name: str(value) for name, value in tuned.items()},
    }
    before = files_of(Store(built / "store"))
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "--select", "*"]
    done = subprocess.run(
        [*command, "-m", "acme_rag_pipeline.definitions"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert files_of(Store(built / "store")) == before
    processes = [json.loads(path.read_text(encoding="utf-8")) for path in told.iterdir()]
    ran = [process for process in processes if process["package"]]
    assert ran
    assert {process["package"] for process in ran} == {str(checkout / "acme_rag_pipeline")}
    assert {process["version"] for process in ran} == {"9.9"}
    for process in processes:
        assert not {"torch", "sentence_transformers", "transformers", "lancedb"} & set(process["modules"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gate": {"minimum_effect": 0.5}}, {"evaluation_report", "promoted_retriever"}),
        ({"serving": {"keep_promotions": 7}}, set()),
        # So many pairs that nothing is trained: the candidate goes, and its index with it.
        (
            {"training": {"minimum_pairs": 10_000}},
            {"fine_tuned_model", "fine_tuned_index", "evaluation_report", "promoted_retriever"},
        ),
    ],
)
def test_a_late_setting_redoes_nothing_before_it(root: Path, given: dict[str, Any], expected: set[str]) -> None:
    # A kept champion is a new decision with the same table: the served index may look at it again.
    assert redone(root, **given) - {"served_index"} == expected
    assert redone(root, **given) == set()


def test_the_chunking_redoes_chunks_and_what_depends_on_them(root: Path) -> None:
    stages = oracle.EVERYTHING
    dependants = {"chunks", "curated_pairs", "synthetic_pairs", "golden_queries", "base_index", "training_set"}
    assert redone(root, stages, chunking={"max_tokens": 64}) == dependants | {"fine_tuned_index", "served_index"}
    assert redone(root, stages, chunking={"max_tokens": 64}) == set()


def test_new_code_redoes_its_stage_and_no_other_where_the_content_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        ingest: {"documents"},
        chunks: {"chunks"},
        curated: {"curated_pairs"},
        synthetic: {"synthetic_pairs"},
        golden: {"golden_queries"},
        index: {"base_index", "fine_tuned_index"},
        training_set: {"training_set"},
        serve: {"served_index"},
    }
    for module, stages in own.items():
        monkeypatch.setattr(module, "CODE_VERSION", "of tomorrow")
        assert redone(root, oracle.EVERYTHING) == stages
    # Another embedded generator makes other queries of headings, which choose between models where an LLM wrote the pairs.
    monkeypatch.setattr(training_set, "GENERATOR_VERSION", "offline-of-tomorrow")
    assert redone(root, oracle.EVERYTHING) == {"training_set"}
    assert redone(root, oracle.EVERYTHING) == set()
