"""sentence-transformers alone opens the model, and LanceDB alone embeds and searches, in a process without our package."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from acme_rag_pipeline_tests.interop.conftest import QUESTIONS, Served, least_cosine

pytestmark = pytest.mark.slow
# The embedding function in the schema metadata does the encoding; all it needs to be told is where the model lies.
OUTSIDER = textwrap.dedent(
    """
    import json, sys
    import lancedb
    from lancedb.embeddings import get_registry
    from sentence_transformers import SentenceTransformer

    folder, name, version, model_dir, questions = sys.argv[1:]
    get_registry().set_var("rag_model_dir", model_dir)
    table = lancedb.connect(folder).open_table(name)
    table.checkout(int(version))
    rows = table.search().limit(1000).to_list()
    vectors = SentenceTransformer(model_dir, device="cpu").encode([row["text"] for row in rows])
    found = {
        kind: {q: [r["id"] for r in table.search(q, query_type=kind, **given).limit(4).to_list()] for q in json.loads(questions)}
        for kind, given in (("vector", {"vector_column_name": "vector"}), ("hybrid", {"fts_columns": "search_text"}))
    }
    assert not [module for module in sys.modules if module.startswith("acme_rag")]
    print(json.dumps({"stored": [row["vector"] for row in rows], "encoded": vectors.tolist(), "found": found}))
    """
)


@pytest.fixture(scope="module")
def outsider(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict:
    arguments = [served.store.lancedb, served.pointer.table, served.pointer.lance_version, served.model_dir]
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDER, *map(str, arguments), json.dumps(list(QUESTIONS))],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_sentence_transformers_opens_the_promoted_model(outsider: dict) -> None:
    assert len(outsider["stored"]) > 3
    assert least_cosine(outsider["stored"], outsider["encoded"]) >= 0.9999


def test_lancedb_embeds_a_plain_question_itself(served: Served, outsider: dict) -> None:
    for question in QUESTIONS:
        assert outsider["found"]["vector"][question] == [hit.chunk_id for hit in served.search(question, k=4)]


def test_lancedb_hybrid_search_finds_the_document(served: Served, outsider: dict) -> None:
    documents = {row["id"]: row["doc_id"] for row in served.rows()}
    for question, doc_path in QUESTIONS.items():
        assert documents[outsider["found"]["hybrid"][question][0]] == doc_path


def test_the_schema_names_the_function_without_a_path_of_this_machine(served: Served) -> None:
    metadata = served.table().schema.metadata[b"embedding_functions"].decode()
    (function,) = json.loads(metadata)
    assert function["name"] == "sentence-transformers"
    assert function["model"]["trust_remote_code"] is False
    variable, name, default = function["model"]["name"].split(":", 2)
    assert (variable, name) == ("$var", "rag_model_dir")
    assert not Path(default).is_absolute()
    assert str(served.store.root) not in metadata


def test_the_model_directory_is_safetensors_without_code(served: Served) -> None:
    suffixes = {path.suffix for path in served.model_dir.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".txt", ".md"}
