"""The shipped company: enough of it, every quote stands where it says, and the golden questions are independent."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.documents.parsers import parse
from acme_rag_pipeline.pairs.wording import query_key, word_overlap
from acme_rag_pipeline.store.quotes import QuotableText
from acme_rag_pipeline_tests.conftest import PROJECT

DATA = PROJECT / "data"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def texts() -> dict[str, QuotableText]:
    files = sorted(path for path in (DATA / "documents").rglob("*") if path.is_file())
    return {
        path.relative_to(DATA / "documents").as_posix(): QuotableText.of(parse(path.name, path.read_bytes()).text)
        for path in files
    }


def test_it_is_a_company_of_some_size(texts: dict[str, QuotableText]) -> None:
    assert len(texts) >= 60
    assert sum(len(text.text.split()) for text in texts.values()) >= 40_000
    assert {path.rsplit(".", 1)[1] for path in texts} == {"md", "html", "pdf", "docx"}


def test_every_curated_quote_is_found(texts: dict[str, QuotableText]) -> None:
    pairs = lines(DATA / "curated_pairs.jsonl")
    assert len(pairs) >= 150
    assert [p["quote"] for p in pairs if texts[p["doc_path"]].find(p["quote"]) is None] == []
    mission = [p for p in pairs if p["query"] == "Can employees work remotely from another country?"]
    assert [p["doc_path"] for p in mission] == ["remote-work/international-mobility-policy.md"]


def test_every_golden_span_holds_its_quote(texts: dict[str, QuotableText]) -> None:
    qrels = lines(DATA / "golden/qrels.jsonl")
    wrong = [
        q["quote"] for q in qrels if texts[q["doc_path"]].find(q["quote"], near=q["start"]) != (q["start"], q["end"])
    ]
    assert wrong == []
    assert len({q["doc_path"] for q in qrels}) >= len(texts) * 2 / 3


@pytest.mark.skipif(
    not (PROJECT / ".git").exists() or shutil.which("git") is None, reason="this is no checkout, or there is no git"
)
@pytest.mark.parametrize("name", [".ci/run", "data/documents/leave/flex-days.md", "data/golden/qrels.jsonl"])
def test_git_for_windows_checks_out_the_same_bytes(name: str) -> None:
    options = ("-c", "safe.directory=*", "-c", "core.autocrlf=true")
    # Not the file as it lies there, which somebody may be editing.
    as_is, checked_out = (
        subprocess.run(["git", *options, "cat-file", how, f"HEAD:{name}"], cwd=PROJECT, capture_output=True, check=True)
        for how in ("blob", "--filters")
    )
    assert checked_out.stdout == as_is.stdout


def test_golden_questions_are_independent_of_the_curated_ones_and_of_the_documents_wording(
    texts: dict[str, QuotableText],
) -> None:
    golden = lines(DATA / "golden/queries.jsonl")
    assert len(golden) >= 240
    wordings = Counter(query_key(q["query"]) for q in golden + lines(DATA / "curated_pairs.jsonl"))
    assert [wording for wording, count in wordings.items() if count > 1] == []
    evidence: dict[str, list[str]] = {}
    for q in lines(DATA / "golden/qrels.jsonl"):
        evidence.setdefault(q["query_id"], []).append(q["quote"])
    assert evidence.keys() == {q["query_id"] for q in golden}
    overlaps = [max(word_overlap(q["query"], quote) for quote in evidence[q["query_id"]]) for q in golden]
    low = sum(overlap <= 0.25 for overlap in overlaps) / len(overlaps)
    print(f"\nword overlap with the evidence: mean {statistics.mean(overlaps):.2f}, at most a quarter in {low:.0%}")
    assert low >= 0.3
