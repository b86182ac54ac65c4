"""`acme-rag status` where there is nothing to show yet, nothing to compare with, or where something is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.documents.source import DocumentsFolderError
from acme_rag_pipeline.retrieval import Retriever, passage_encoder
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.serving.serve import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.models import ModelDamaged
from acme_rag_pipeline.store.promotion import Promoted, read_pointer, write_pointer
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.unreadable_table import TableUnreadable
from acme_rag_pipeline.training.candidate import train_candidate
from acme_rag_pipeline_tests.increments import oracle


def status(store: Store, documents: Path, *options: str) -> str:
    called = CliRunner().invoke(main, ["--store", str(store.root), "--documents", str(documents), "status", *options])
    assert called.exit_code == 0, called.exception
    return called.stdout


def test_of_a_store_that_was_never_built_it_says_how_to_build_it(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    assert "make materialize" in status(store, documents)
    never_built = json.loads(status(store, documents, "--json"))
    assert never_built["promoted"] is None
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert never_built.keys() - {"note"} == json.loads(status(store, documents, "--json")).keys()


def test_a_console_that_lacks_a_character_shows_an_escape_and_json_says_the_same(store: Store, tmp_path: Path) -> None:
    documents = tmp_path / "Überstunden → 🗂"
    documents.mkdir()
    console = CliRunner(charset="iso-8859-1")
    options = ["--store", str(store.root), "--documents", str(documents), "status"]
    said = console.invoke(main, options)
    assert said.exit_code == 0, said.exception
    assert f"{tmp_path}/Überstunden \\u2192 \\ud83d\\uddc2\n" in said.stdout
    assert json.loads(console.invoke(main, [*options, "--json"]).stdout)["documents_folder"] == str(documents)


def test_times_are_utc_whatever_the_zone_of_the_machine(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    command = [sys.executable, "-m", "acme_rag_pipeline.cli", "--store", str(store.root), "--documents", str(documents)]
    there = {**os.environ, "TZ": "Pacific/Kiritimati"}
    told = json.loads(subprocess.run([*command, "status", "--json"], env=there, capture_output=True, check=True).stdout)
    assert told["decisions"][0]["decided_at"] == told["promoted"]["decided_at"]
    assert all(stage["last_change"].endswith("+00:00") for stage in told["stages"])


def test_of_a_copy_for_readers_it_says_what_is_served(store: Store, documents: Path) -> None:
    write_pointer(store.pointer, Promoted("d" * 64, "models/d", "passages_d", 1, "dense", "2026-11-28T00:27:13", "why"))
    said = status(store, documents)
    assert f"promoted   {'d' * 12}, dense" in said
    assert "behind" not in said


def test_what_is_gone_or_has_changed_is_counted_and_not_called_up_to_date(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert "served     up to date" in status(store, documents)
    (documents / "travel.md").unlink()
    (documents / "new.md").write_text("# New\n\nNothing was known of this.\n")
    (documents / "hr/leave.md").write_text("# Leave\n\nThere is none.\n")
    assert "behind the documents (1 new, 1 changed, 1 deleted): run `refresh`" in status(store, documents)
    assert json.loads(status(store, documents, "--json"))["documents_changed"] == {"new": 1, "changed": 1, "deleted": 1}
    oracle.run(store, settings_for(), oracle.REFRESH)
    for folder, said in ((store.lancedb, "the table passages_"), (store.models, "the model folder models/")):
        shutil.move(folder, store.root / "away")
        answer = status(store, documents)
        assert "up to date" not in answer
        assert said in answer
        assert json.loads(status(store, documents, "--json"))["up_to_date"] is False
        shutil.move(store.root / "away", folder)
    assert "served     up to date" in status(store, documents)


def test_what_search_cannot_open_is_not_called_up_to_date(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    pointer = read_pointer(store.pointer)
    table = store.lancedb / f"{pointer.table}.lance"
    cases = {
        store.root / pointer.model_dir / "model.safetensors": "cut off, model.safetensors: run `refresh`, which copies",
        next((table / "data").iterdir()): f"of the table {pointer.table} are missing or cut off data/",
        next((table / "_versions").iterdir()): "cut off _versions/",
    }
    for path, said in cases.items():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        answer = status(store, documents)
        assert said in answer
        assert "up to date" not in answer
        with pytest.raises((ModelDamaged, TableUnreadable)):
            Retriever.open(store.root).search("hotel")
        path.write_bytes(whole)
        assert "served     up to date" in status(store, documents)
    write_pointer(store.pointer, replace(pointer, lance_version=9999))
    assert f"the table {pointer.table} has no version 9999: materialise `served_index`" in status(store, documents)
    assert json.loads(status(store, documents, "--json"))["up_to_date"] is False
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert "served     up to date" in status(store, documents)


def test_of_a_tuned_model_that_lost_a_file_it_says_another_way_out(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    tuned = "1" * 64
    folder = models.model_folder(store, tuned)
    shutil.copytree(store.root / read_pointer(store.pointer).model_dir, folder)
    encoder = PassageEncoder(tuned, "none")
    decisions.append(store, encoder=encoder, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
    oracle.run(store, settings, oracle.REFRESH)
    assert "served     up to date" in status(store, documents)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: run `acme-rag rollback`, or delete the folder and run `retrain`" in status(store, documents)


def test_status_imports_neither_torch_nor_lancedb(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    program = (
        "import sys; from acme_rag_pipeline.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print('heavy:', sorted({'torch', 'lancedb', 'pandas', 'sentence_transformers'} & sys.modules.keys()))"
    )
    options = ["--store", str(store.root), "--documents", str(documents), "status"]
    done = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, check=True)
    assert "served     up to date" in done.stdout
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize("left", [(), ("scan.xyz",)])
def test_of_an_emptied_folder_it_says_what_a_run_would_say(
    store: Store, documents: Path, settings_for: Callable[..., Settings], left: tuple[str, ...]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    shutil.rmtree(documents)
    documents.mkdir()
    for name in left:
        (documents / name).write_bytes(b"\x00")
    with pytest.raises(DocumentsFolderError) as refused:
        ingest_documents(store, settings_for())
    answer = status(store, documents)
    assert f"served     {refused.value}\n" in answer
    assert "run `refresh`" not in answer
    known = json.loads(status(store, documents, "--json"))
    assert (known["up_to_date"], known["documents_problem"]) == (False, str(refused.value))


@pytest.mark.parametrize("evidence", ["golden", "held_out"])
def test_the_share_that_chose_the_weights_is_not_called_held_out(
    store: Store, documents: Path, settings_for: Callable[..., Settings], evidence: str
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    details = {"evidence": evidence, "ndcg@10": {"golden/base": 0.25, "held_out/base": 0.75}}
    with store.warehouse.write() as connection:
        record(connection, StageResult("evaluation_report", "1", details=details), "1")
    chose = evidence == "golden"
    answer = status(store, documents)
    assert "nDCG@10    0.2500  golden/base" in answer
    assert f"nDCG@10    0.7500  {'validation (chose the weights)' if chose else 'held_out'}/base" in answer
    known = json.loads(status(store, documents, "--json"))
    assert known["ndcg@10"] == details["ndcg@10"]
    assert known["held_out_chose_the_weights"] is chose


def test_an_index_over_chunks_of_earlier_documents_is_not_up_to_date(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    (documents / "travel.md").unlink()
    # A refresh that was killed after its first stage, and then a rollback, or a retrain that came first.
    ingest_documents(store, settings_for())
    serve(store, settings_for())
    assert "behind the documents: run `refresh`" in status(store, documents)
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert "served     up to date" in status(store, documents)


def test_changed_settings_are_said_of_the_index_and_of_the_training(
    store: Store, documents: Path, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle.run(
        store, settings_for(training={"minimum_pairs": 10_000}), [*oracle.EVERYTHING[:-2], train_candidate, serve]
    )
    monkeypatch.setenv("ACME_RAG_TRAINING__MINIMUM_PAIRS", "10000")
    assert "changed since the last retrain (" not in status(store, documents)
    monkeypatch.setenv("ACME_RAG_TRAINING__EPOCHS", "1")
    answer = status(store, documents)
    assert (
        "training   a setting, the base model or the code changed since the last retrain (fine_tuned_model)" in answer
    )
    assert "served     up to date" in answer
    monkeypatch.setenv("ACME_RAG_CHUNKING__MAX_TOKENS", "100")
    answer = status(store, documents)
    assert "served     made with other settings, another base model or other code (chunks): run `refresh`" in answer
    known = json.loads(status(store, documents, "--json"))
    assert (known["up_to_date"], known["settings_changed_since_refresh"]) == (False, ["chunks"])
    # A file that the training alone reads hides nothing of the index.
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("ACME_RAG_PAIRS__EXAMPLES", "gone.jsonl")
    answer = status(store, documents)
    assert "settings   ACME_RAG_PAIRS__EXAMPLES: " in answer
    assert "served     made with other settings" in answer
    monkeypatch.setenv("ACME_RAG_BASE_MODEL", "gone")
    assert "settings   ACME_RAG_BASE_MODEL: no folder" in status(store, documents)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "model.safetensors")

    monkeypatch.setattr(passage_encoder, "resolve_base_model", refused)
    assert "settings   ACME_RAG_BASE_MODEL: gone cannot be read: [Errno 13]" in status(store, documents)


@pytest.mark.parametrize(("number", "is_said"), [(errno.EACCES, True), (errno.ENOENT, False)])
def test_a_path_that_may_not_be_looked_at_is_one_sentence_and_a_file_that_the_code_misses_a_defect(
    store: Store, documents: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_said: bool
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/a file")

    monkeypatch.setattr("acme_rag_pipeline.status.store_status", fails)
    called = CliRunner().invoke(main, ["--store", str(store.root), "--documents", str(documents), "status"])
    assert called.exit_code == 1
    assert isinstance(called.exception, SystemExit) == is_said
    assert called.stderr == ("acme-rag: /somewhere/a file: Permission denied\n" if is_said else "")


def test_a_record_of_an_earlier_version_is_brought_up_to_date_without_work(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    with store.warehouse.write() as connection:
        connection.execute(
            'UPDATE stages SET summary = json_merge_patch(summary, \'{"details": {"sources": "in another way"}}\') '
            "WHERE stage = 'served_index'"
        )
    assert "up to date" not in status(store, documents)
    assert serve(store, settings_for()).unchanged
    assert "served     up to date" in status(store, documents)


@pytest.mark.parametrize(
    "options",
    [["evaluate"], ["rollback"], ["search", "x"], *(["pairs", n] for n in ("estimate", "export", "ask-again"))],
)
def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path: Path, documents: Path, options: list[str]) -> None:
    typed = tmp_path / "typo"
    called = CliRunner().invoke(main, ["--store", str(typed), "--documents", str(documents), *options])
    assert called.exit_code == 1
    assert called.output.startswith("acme-rag: ")
    assert str(typed) in called.output
    assert not typed.exists()


def test_where_nothing_is_served_it_says_how_to_point_to_a_store(tmp_path: Path, documents: Path) -> None:
    called = CliRunner().invoke(main, ["--store", str(tmp_path / "typo"), "search", "hotel"])
    assert "run `make materialize`" in called.output
    assert "or point to your store: `--store`, ACME_RAG_STORE or ACME_RAG_ROOT" in called.output


def test_passages_of_a_store_without_chunks_are_not_asked_about_again(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    ingest_documents(store, settings_for())
    options = ["--store", str(store.root), "--documents", str(documents), "pairs"]
    estimated, asked = (CliRunner().invoke(main, [*options, command]) for command in ("estimate", "ask-again"))
    assert (asked.exit_code, asked.output) == (1, estimated.output)
    assert "`chunks` has never been materialised" in asked.output
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert "has given no passage up" in CliRunner().invoke(main, [*options, "ask-again"]).output


def test_an_empty_store_is_the_default(documents: Path, tmp_path: Path) -> None:
    called = CliRunner().invoke(main, ["--store", "", "--documents", str(documents), "status", "--json"])
    assert json.loads(called.stdout)["store"] == str(tmp_path / "data/store")


@pytest.mark.parametrize("promoted", [True, False])
def test_a_missing_documents_folder_is_said_and_not_called_a_lag(
    store: Store, documents: Path, settings_for: Callable[..., Settings], promoted: bool
) -> None:
    ingest_documents(store, settings_for())
    if promoted:
        write_pointer(
            store.pointer, Promoted("d" * 64, "models/d", "passages_d", 1, "dense", "2026-11-28T00:27:13", "why")
        )
    said = status(store, documents.parent / "unmounted")
    assert "ACME_RAG_DOCUMENTS" in said
    assert "run `refresh`" not in said
    assert promoted == ("nothing is served" not in said)


def test_why_a_document_cannot_be_read_is_said_at_any_time(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    for number in range(7):
        (documents / f"scan-{number}.pdf").write_bytes(b"no pdf")
    oracle.run(store, settings_for(), oracle.REFRESH)
    answer = status(store, documents)
    assert answer.count("unreadable scan-") == 5
    assert "and 2 more" in answer
    listed = json.loads(status(store, documents, "--json"))["unreadable"]
    assert [row["doc_path"] for row in listed] == [f"scan-{n}.pdf" for n in range(7)]
    assert all(row["reason"] for row in listed)
