"""A run notices that files of the served table or model are gone: it heals what it can and names what it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, install_base
from acme_rag_pipeline.retrieval.table_search import SearchHit
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.serving.serve import rollback, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models, vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.unreadable_table import TableUnreadable, reading
from acme_rag_pipeline.store.warehouse import WarehouseUnusable
from acme_rag_pipeline_tests.conftest import files_of
from acme_rag_pipeline_tests.increments import oracle

QUERY = "hotel limit in Rotterdam"


def with_tuned_model(store: Store, settings: Settings) -> tuple[str, str, Path]:
    """The base's digest, and that of a copy of it under another name, with its folder."""
    base, tuned = install_base(store, settings).digest, "1" * 64
    return base, tuned, shutil.copytree(models.model_folder(store, base), models.model_folder(store, tuned))


def test_a_table_that_lost_its_data_is_built_again_without_encoding(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    before = Retriever.open(store.root).search(QUERY)
    lost = next((store.lancedb / f"{read_pointer(store.pointer).table}.lance/data").iterdir())
    lost.unlink()
    with oracle.watched() as work:
        results = oracle.run(store, settings, oracle.REFRESH)
    assert work.passages == []
    assert f"data/{lost.name}" in results["base_index"].details["outcome"]
    assert Retriever.open(store.root).search(QUERY) == before
    files = files_of(store)
    again = oracle.run(store, settings, oracle.REFRESH)
    assert all(result.unchanged for result in again.values())
    assert "outcome" not in again["base_index"].details
    assert files_of(store) == files


@pytest.mark.parametrize("pattern", ["data/*.lance", "_indices/*/part_0_tokens.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("how", ["cut off", "overwritten"])
def test_a_table_that_cannot_be_read_is_one_line_and_what_it_says_builds_it_again(
    store: Store, documents: Path, settings_for: Callable[..., Settings], pattern: str, how: str
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    before = Retriever.open(store.root).search(QUERY, retriever="bm25")
    name = read_pointer(store.pointer).table
    table = store.lancedb / f"{name}.lance"
    damaged = min(table.glob(pattern))
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2] if how == "cut off" else bytes(len(content)))
    opened = Retriever.open(store.root)
    with pytest.raises(TableUnreadable, match=f"^table {name} cannot be read"):
        opened.search(QUERY, retriever="bm25")
    called = CliRunner().invoke(main, ["--store", str(store.root), "search", QUERY, "--retriever", "bm25"])
    assert (called.exit_code, called.output.count("\n")) == (1, 1)
    assert "run `make refresh`, which builds it again" in called.output
    assert ".rs:" not in called.output
    if f"delete {table} and run" in called.output:
        shutil.rmtree(table)
    with oracle.watched() as work:
        oracle.run(store, settings, oracle.REFRESH)
    assert work.passages == []
    assert opened.search(QUERY, retriever="bm25") == before


def assert_found_alike(found: list[SearchHit], expected: list[SearchHit]) -> None:
    """The same passages with the same scores, but for what the vectors of two models of the same weights owe to their batches."""
    assert [hit.chunk_id for hit in found] == [hit.chunk_id for hit in expected]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=0.002)


def with_other_bytes(table: Path) -> None:
    """Every data file of a table keeps its size."""
    for path in table.glob("data/*.lance"):
        path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))


def test_tables_of_other_bytes_are_built_again_by_the_next_run_that_has_work(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    _, tuned, _ = with_tuned_model(store, settings)
    encoder = PassageEncoder(tuned, "none")
    decisions.append(store, encoder=encoder, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
    oracle.run(store, settings, oracle.REFRESH)
    of_tuned = Retriever.open(store.root).search(QUERY)
    rollback(store, settings)
    before = Retriever.open(store.root).search(QUERY)
    assert_found_alike(of_tuned, before)
    tables = sorted(store.lancedb.glob("*.lance"))
    assert len(tables) == 2, "the base's, and the one that is kept for a rollback"
    for table in tables:
        with_other_bytes(table)
    said = ["--store", str(store.root), "--documents", str(documents)]
    # Names and sizes are all that a run looks at which has nothing to do.
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())
    assert "cannot be read" in CliRunner().invoke(main, [*said, "search", QUERY]).output
    (documents / "bicycles.md").write_text("# Garage\n\nBicycles stand in the garage.", encoding="utf-8")
    assert "behind the documents (1 new): run `refresh`" in CliRunner().invoke(main, [*said, "status"]).output
    with oracle.watched() as work:
        results = oracle.run(store, settings, oracle.REFRESH)
    assert {text for text in work.passages if "Bicycles" not in text} == set()
    assert "the table was built again: not readable (" in results["base_index"].details["outcome"]
    assert "served     up to date" in CliRunner().invoke(main, [*said, "status"]).output
    after = Retriever.open(store.root).search(QUERY)
    of_before = [hit for hit in after if hit.doc_path != "bicycles.md"]
    assert of_before == before[: len(of_before)]
    assert len(of_before) >= len(before) - 1
    assert list(store.lancedb.glob("*.lance")) == [store.lancedb / f"{read_pointer(store.pointer).table}.lance"]
    decisions.append(store, encoder=encoder, recipe="dense", verdict=decisions.ROLLED_BACK, reason="by hand")
    serve(store, settings)
    assert read_pointer(store.pointer).table == encoder.table
    assert_found_alike(Retriever.open(store.root).search(QUERY), after)


@pytest.mark.parametrize("model_lost", [False, True])
def test_a_candidate_s_table_of_other_bytes_keeps_no_edit_from_readers(
    store: Store, documents: Path, settings_for: Callable[..., Settings], model_lost: bool
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    _, tuned, folder = with_tuned_model(store, settings)
    with store.warehouse.write() as connection:
        files = {tuned: models.file_sizes(folder, ["model.safetensors"])}
        details = {"model_digest": tuned, "passage_prefix": "none", "model_files": files}
        record(connection, StageResult("fine_tuned_model", tuned, details=details), tuned)
    oracle.run(store, settings, oracle.REFRESH)
    table = store.lancedb / f"{PassageEncoder(tuned, 'none').table}.lance"
    with_other_bytes(table)
    if model_lost:
        (folder / "model.safetensors").unlink()
    (documents / "travel.md").unlink()
    (documents / "bicycles.md").write_text("# Garage\n\nBicycles stand in the garage.", encoding="utf-8")
    oracle.run(store, settings, oracle.REFRESH)
    found = {hit.doc_path for hit in Retriever.open(store.root).search(QUERY, k=100)}
    assert found == {"hr/leave.md", "remote.txt", "bicycles.md"}
    assert table.exists() != model_lost, "without its model it waits for one, and then is built from nothing"
    if not model_lost:
        held = vectors.open_table(vectors.connect(store.lancedb), table.stem)
        assert held is not None
        assert {row["metadata"]["doc_path"] for row in held.to_arrow().to_pylist()} == found


def test_a_row_count_of_a_table_that_cannot_be_opened_is_none(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    assert checks.base_index_is_complete(store, settings).passed
    manifest = min((store.lancedb / f"{read_pointer(store.pointer).table}.lance/_versions").iterdir())
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert not checks.base_index_is_complete(store, settings).passed


def test_errors_that_are_not_lance_s_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("out of memory"), ValueError("not a vector"), KeyError("lance error: ")):
        with pytest.raises(type(error), match=error.args[0]) as raised, reading(tmp_path, "t"):
            raise error
        assert raised.value is error
    # Deleting it would help nobody.
    denied = RuntimeError("lance error: LanceError(IO): Permission denied (os error 13), /src/local.rs:1:2")
    with pytest.raises(TableUnreadable) as said, reading(tmp_path, "t"):
        raise denied
    assert str(said.value) == (
        f"table t cannot be read (Permission denied (os error 13)): make {tmp_path / 't.lance'} readable and try again"
    )
    # The same of the folder of all tables.
    closed = ValueError(
        'Invalid input, Failed to connect to namespace: IO { source: Generic { store: "LocalFileSystem", source: '
        'UnableToWalkDir { source: Error { depth: 0, inner: Io { path: Some("/t"), err: Os { code: 13, kind: '
        'PermissionDenied, message: "Permission denied" } } } } }, location: Location { file: "/x/object_store.rs" } }'
    )
    with pytest.raises(TableUnreadable) as said, reading(tmp_path, "t"):
        raise closed
    assert str(said.value) == (
        f"table t cannot be read (Permission denied): make {tmp_path / 't.lance'} readable and try again"
    )


def test_a_base_model_that_lost_a_file_is_copied_again(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    folder = store.root / read_pointer(store.pointer).model_dir
    before = {name: content for name, content in files_of(store).items() if name.startswith("models/")}
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"cut off")
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())
    assert {name: content for name, content in files_of(store).items() if name.startswith("models/")} == before


def test_a_promoted_model_that_lost_a_file_is_said_and_deleted_text_leaves_all_the_same(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    base, tuned, folder = with_tuned_model(store, settings)
    decisions.append(
        store,
        encoder=PassageEncoder(tuned, "none"),
        recipe="dense",
        verdict=decisions.PROMOTED,
        reason="by hand",
    )
    oracle.run(store, settings, oracle.REFRESH)
    # A person may write on the model card.
    (folder / "README.md").write_text("ours\n", encoding="utf-8")
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())
    (folder / "model.safetensors").unlink()
    (documents / "travel.md").unlink()
    for _ in range(2):
        with pytest.raises(models.ModelDamaged, match=r"has lost model\.safetensors"):
            oracle.run(store, settings, oracle.REFRESH)
    pointer = read_pointer(store.pointer)
    assert (pointer.model_digest, pointer.table[9:25]) == (tuned, tuned[:16])
    shutil.copyfile(models.model_folder(store, base) / "model.safetensors", folder / "model.safetensors")
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())
    found = {hit.doc_path for hit in Retriever.open(store.root).search(QUERY, k=100)}
    assert found == {"hr/leave.md", "remote.txt"}


@pytest.mark.parametrize(
    "changed", [None, {"recipe": "colbert"}, {"lance_version": 999}, {"table": 5}, {"fusion": {"weights": 1}}]
)
def test_a_pointer_that_cannot_be_used_is_one_line_and_the_next_run_writes_it_anew(
    store: Store, documents: Path, settings_for: Callable[..., Settings], changed: dict[str, Any] | None
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    before = store.pointer.read_bytes()
    store.pointer.write_bytes(
        b"\xff" + before if changed is None else json.dumps(json.loads(before) | changed).encode()
    )
    for command in (["search", QUERY], ["status"]):
        called = CliRunner().invoke(main, ["--store", str(store.root), "--documents", str(documents), *command])
        assert called.exception is None or isinstance(called.exception, SystemExit), command
        if command[0] == "search":
            assert (called.exit_code, called.output.count("\n")) == (1, 1)
            assert "promoted.json" in called.output
            assert "materialise `served_index`" in called.output
    oracle.run(store, settings, oracle.REFRESH)
    assert store.pointer.read_bytes() == before


@pytest.mark.parametrize("how", ["cut off", "overwritten", "another file"])
def test_a_damaged_database_is_one_sentence_with_what_to_do(
    store: Store, documents: Path, settings_for: Callable[..., Settings], how: str
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    (documents / "new.md").write_text("# Garage\n\nBicycles stand in the garage.", encoding="utf-8")
    whole = {path: path.read_bytes() for path in (store.warehouse.path, store.embedding_cache)}
    for path, advice in ((store.warehouse.path, "from a backup"), (store.embedding_cache, "Delete that file")):
        content = whole[path]
        damaged = {
            "cut off": content[: len(content) // 2],
            "overwritten": content[:12_288] + bytes(len(content) - 12_288),
            "another file": b"no database" * 1000,
        }
        path.write_bytes(damaged[how])
        with pytest.raises(WarehouseUnusable, match=f"^ACME_RAG_STORE: .*{path.name} is damaged: .*{advice}"):
            oracle.run(store, settings, oracle.REFRESH)
        if path == store.warehouse.path:
            called = CliRunner().invoke(main, ["--store", str(store.root), "--documents", str(documents), "status"])
            assert (called.exit_code, called.output.count("\n")) == (1, 1)
        path.write_bytes(content)
    store.embedding_cache.unlink()
    oracle.run(store, settings, oracle.REFRESH)
    assert Retriever.open(store.root).search("bicycle garage", k=1)[0].doc_path == "new.md"


def test_a_damaged_candidate_that_nobody_reads_keeps_no_edit_from_readers(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    _, tuned, folder = with_tuned_model(store, settings)
    with store.warehouse.write() as connection:
        details = {"model_digest": tuned, "passage_prefix": "none"}
        record(connection, StageResult("fine_tuned_model", tuned, details=details), tuned)
    oracle.run(store, settings, oracle.REFRESH)
    assert "fine_tuned" in known_arms(store)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (documents / "travel.md").unlink()
    (documents / "bicycles.md").write_text("# Garage\n\nBicycles stand in the garage.", encoding="utf-8")
    done = oracle.run(store, settings, oracle.REFRESH)
    assert done["fine_tuned_index"].details["outcome"].startswith("not searchable: the model")
    found = {hit.doc_path for hit in Retriever.open(store.root).search(QUERY, k=100)}
    assert found == {"hr/leave.md", "remote.txt", "bicycles.md"}
    assert "fine_tuned" not in known_arms(store)
    table = vectors.open_table(vectors.connect(store.lancedb), PassageEncoder(tuned, "none").table)
    assert table is not None
    assert {row["metadata"]["doc_path"] for row in table.to_arrow().to_pylist()} == {"hr/leave.md", "remote.txt"}
    check = checks.fine_tuned_index_is_complete(store, settings)
    assert (check.passed, "cannot be opened" in str(check.metadata)) == (False, True)

    (folder / "model.safetensors").write_bytes(weights)
    with store.warehouse.write() as connection:
        details |= {"model_files": {tuned: models.file_sizes(folder, ["model.safetensors"])}}
        record(connection, StageResult("fine_tuned_model", tuned, details=details), tuned)
    oracle.run(store, settings, oracle.REFRESH)
    # Where nothing must be encoded, too.
    (folder / "model.safetensors").write_bytes(weights[:1000])
    assert "fine_tuned_index" in oracle.run(store, settings, oracle.REFRESH)
    assert not checks.fine_tuned_index_is_complete(store, settings).passed
    (folder / "model.safetensors").write_bytes(weights)
    oracle.run(store, settings, oracle.REFRESH)
    assert "fine_tuned" in known_arms(store)
    assert checks.fine_tuned_index_is_complete(store, settings).passed
