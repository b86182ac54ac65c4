"""`acme-rag search --queries`: a file that cannot be used and a run that cannot be written are one line and exit code 1."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline_tests.increments import oracle

GOOD = b'{"query_id": 7, "query": "hotel limit in Rotterdam"}\n'


def test_a_query_file_is_used_or_what_is_wrong_with_it_is_said(
    store: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    queries, out = tmp_path / "queries.jsonl", tmp_path / "run.jsonl"

    def search(content: bytes, where: Path = out, *more: str) -> Result:
        queries.write_bytes(content)
        options = [
            "--store",
            str(store.root),
            "--documents",
            str(documents),
            "search",
            "--queries",
            str(queries),
            "--out",
            str(where),
            *more,
        ]
        called = CliRunner().invoke(main, options)
        assert called.exception is None or isinstance(called.exception, SystemExit), called.exception
        return called

    for content, said in (
        (b"\xff\xfe{}", "is not UTF-8 (byte 0)"),
        (GOOD + b'{"query_id": "8", "query": null}', "line 2: query must be a text"),
        (b'{"query_id": "8", "query": ["a", "b"]}', "line 1: query must be a text"),
        (b'{"query_id": {}, "query": "a"}', "line 1: query must be a text, query_id a text or a whole number"),
        (b'{"query_id": true, "query": "a"}', "line 1: query must be a text, query_id a text or a whole number"),
        (b'{"query": "a"}', "line 1: must be an object with query_id and query"),
        (b'["a", "b"]', "line 1: must be an object with query_id and query"),
        (
            GOOD + b"\n{'query_id': 8}",
            "line 3: not JSON (Expecting property name enclosed in double quotes at column 2)",
        ),
        (b"[" * 100_000, "line 1: not JSON (maximum recursion depth exceeded"),
        (b'{"query_id": "\\ud83d", "query": "a"}', "line 1: query_id holds half a character"),
        (GOOD + b'{"query_id": "7", "query": "leave"}', "line 2: query_id 7 stands in line 1 already"),
    ):
        answer = search(content)
        assert (answer.exit_code, answer.output.count("\n")) == (1, 1), content
        assert answer.output.startswith(f"acme-rag: --queries: {queries} ")
        assert said in answer.output
        assert not out.exists()
    answer = search(GOOD, out, "--json")
    assert (answer.exit_code, out.exists()) == (2, False)
    answer = search(GOOD, queries / "run.jsonl")
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1)
    assert f"--out: cannot write {queries / 'run.jsonl'}" in answer.output
    answer = search(GOOD, queries)
    assert answer.exit_code == 1
    assert "is what people wrote: name another file" in answer.output
    assert queries.read_bytes() == GOOD
    assert search(GOOD, documents / "travel.md").exit_code == 1
    assert "Hotels" in (documents / "travel.md").read_text("utf-8")
    os.link(queries, tmp_path / "the same.jsonl")
    (store.root / "lancedb/foreign").touch()
    (tmp_path / ".env").touch()
    (tmp_path / "circle").symlink_to("circle")
    for target, said in (
        (documents / "new.md", "would be one of the documents"),
        (tmp_path / "the same.jsonl", "is what people wrote"),
        (tmp_path / ".env", "is what people wrote"),
        (store.warehouse.path, "is a part of the store"),
        (store.pointer, "is a part of the store"),
        (store.root / "writer.lock", "is a part of the store"),
        (store.lancedb / "foreign", "is a part of the store"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "circle", "circle"),
    ):
        answer = search(GOOD, target)
        assert (answer.exit_code, answer.output.count("\n")) == (1, 1), target
        assert said in answer.output
    assert not (documents / "new.md").exists()
    assert queries.read_bytes() == GOOD
    assert search(GOOD, store.root / "reports/run.jsonl").exit_code == 0
    assert search(GOOD).exit_code == 0
    assert json.loads(out.read_text("utf-8"))["query_id"] == "7"


def test_a_query_with_half_a_character_is_searched_for_like_any_other(
    store: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    queries, out = tmp_path / "queries.jsonl", tmp_path / "run.jsonl"
    queries.write_bytes(b'{"query_id": "a", "query": "hotel limit \\ud83d"}\n')
    many = ["search", "--queries", str(queries), "--out", str(out)]
    one = "hotel limit, caf\udce9"  # Latin-1 typed into a UTF-8 program
    calls = [many, *(["search", one, "--json", "--retriever", name] for name in ("promoted", "bm25", "base_hybrid"))]
    for arguments in (*calls, ["search", one], ["compare", one], ["ask", one], ["ask", one, "--json"]):
        called = CliRunner().invoke(main, ["--store", str(store.root), *arguments])
        assert called.exit_code == 0, (arguments, called.exception)
    assert json.loads(out.read_text(encoding="utf-8"))["hits"][0]["doc_path"] == "travel.md"


def test_who_asks_needs_nothing_that_training_needs(
    store: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    missing = {"ACME_RAG_GOLDEN": str(tmp_path / "nope"), "ACME_RAG_CURATED_PAIRS": str(tmp_path / "nope.jsonl")}
    for generator, said in (
        ("auto", "no LLM is configured"),
        ("openai", "ACME_RAG_GENERATOR=openai needs OPENAI_API_KEY or OPENAI_BASE_URL"),
    ):
        environment = {**missing, "ACME_RAG_GENERATOR": generator}
        called = CliRunner(env=environment).invoke(main, ["--store", str(store.root), "ask", "hotel limit"])
        assert called.exit_code == 0, called.output
        assert called.output.startswith(f"{said}: these are the best passages\n\n[1] travel.md")


def test_an_index_without_a_passage_finds_nothing_and_that_is_no_error(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/scan.pdf").write_bytes(b"no pdf")
    oracle.run(store, settings_for(), oracle.REFRESH)
    compared = CliRunner().invoke(main, ["--store", str(store.root), "compare", "hotel"])
    assert (compared.exit_code, compared.output) == (0, "no passage found\n")
    for retriever in ("promoted", "bm25", "base", "base_hybrid"):
        called = CliRunner().invoke(main, ["--store", str(store.root), "search", "hotel", "--retriever", retriever])
        assert (called.exit_code, called.exception) == (0, None), retriever
        assert "no passage found" in called.output
    assert Retriever.open(store.root).search_many(["hotel", "leave"]) == [[], []]
    with pytest.raises(TypeError, match="for one text there is `search`"):
        Retriever.open(store.root).search_many("hotel")


def test_a_reader_creates_no_folder_where_the_index_is_gone(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    shutil.rmtree(store.lancedb)
    called = CliRunner().invoke(main, ["--store", str(store.root), "search", "hotel"])
    assert called.exit_code == 1
    assert "is missing: materialise `served_index`" in called.output
    assert not store.lancedb.exists()
