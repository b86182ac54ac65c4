"""Groups of passages that nearly repeat each other."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH
from datasketch.lsh import _optimal_param

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.chunking.near_duplicates import PERMUTATIONS, SCHEME, band_shape, groups, signature
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store

RNG = random.Random(1)
WORDS = [f"word{number}" for number in range(400)]


def passage() -> list[str]:
    return [RNG.choice(WORDS) for _ in range(120)]


def test_a_variant_joins_its_original_and_nothing_else_does() -> None:
    texts = {f"p{number}": passage() for number in range(30)}
    texts["variant"] = [*texts["p7"][:60], "Amsterdam", *texts["p7"][61:]]
    texts["half"] = texts["p9"][:60] + passage()[:60]
    signatures = {key: signature(" ".join(words)) for key, words in texts.items()}
    found = groups(signatures, 0.7)
    assert found["variant"] == found["p7"]
    assert len(set(found.values())) == len(texts) - 1
    shuffled = list(signatures)
    RNG.shuffle(shuffled)
    assert groups({key: signatures[key] for key in shuffled}, 0.7) == found


def test_a_stored_signature_is_the_one_that_the_library_computes() -> None:
    """Signatures are kept in stores: another permutation would not be comparable with them."""
    text = "Report sick before nine o'clock in Tern"
    words = ["report", "sick", "before", "nine", "o", "clock", "in", "tern"]
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME)
    for first in range(len(words) - 2):
        sketch.update(" ".join(words[first : first + 3]).encode())
    assert np.array_equal(np.frombuffer(signature(text), dtype="<u8"), sketch.hashvalues)


@pytest.mark.parametrize("text", ["", "one", "two words", "Émigré naïveté 🙂 " * 50, "\ud800 lone surrogate here"])
def test_odd_texts_have_the_library_s_signature_too(text: str) -> None:
    words = re.findall(r"\w+", text.lower())
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME)
    for first in range(max(1, len(words) - 2)):
        sketch.update(" ".join(words[first : first + 3]).encode("utf-8", "surrogatepass"))
    assert np.array_equal(np.frombuffer(signature(text), dtype="<u8"), sketch.hashvalues)


@pytest.mark.parametrize("similarity", [0.05, 0.2, 0.5, 0.7, 0.83, 0.95, 1.0])
def test_the_bands_are_those_of_the_library(similarity: float) -> None:
    assert band_shape(similarity) == _optimal_param(similarity, PERMUTATIONS, 0.5, 0.5)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7])
def test_the_groups_are_those_of_the_library_s_index(similarity: float) -> None:
    originals = [passage() for _ in range(12)]
    variants = [[w if RNG.random() > share else "x" for w in RNG.choice(originals)] for share in (0.02, 0.1, 0.2) * 20]
    signatures = {f"p{n}": signature(" ".join(words)) for n, words in enumerate([*originals, *variants])}
    assert groups(signatures, similarity) == _by_the_library(signatures, similarity)
    assert groups({}, similarity) == {}


def _by_the_library(signatures: dict[str, bytes], similarity: float) -> dict[str, str]:
    index, found = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS), {key: {key} for key in signatures}
    values = {key: np.frombuffer(blob, dtype="<u8") for key, blob in signatures.items()}
    for key, value in values.items():
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME, hashvalues=value)
        for other in index.query(sketch):
            if (values[other] == value).mean() >= similarity:
                both = found[key] | found[other]
                found |= dict.fromkeys(both, both)
        index.insert(key, sketch)
    return {key: min(group) for key, group in found.items()}


def test_boilerplate_is_one_group_however_often_it_stands_there() -> None:
    words = passage()
    footer, variant = signature(" ".join(words)), signature(" ".join([*words[:60], "Utrecht", *words[61:]]))
    signatures = {f"p{number:04}": footer for number in range(3000)} | {"a variant": variant, "other": signature("x")}
    found = groups(signatures, 0.7)
    assert found["other"] == "other"
    assert set(found.values()) == {"a variant", "other"}
    assert groups({}, 0.7) == {}


def test_thousands_of_variants_of_one_form_are_one_group() -> None:
    generator = np.random.default_rng(1)
    values = np.tile(np.frombuffer(signature(" ".join(passage())), dtype="<u8"), (8000, 1))
    changed = generator.integers(0, PERMUTATIONS, (8000, 5))
    np.put_along_axis(values, changed, generator.integers(0, 2**32, changed.shape, dtype=np.uint64), axis=1)
    found = groups({f"p{number:04}": row.tobytes() for number, row in enumerate(values)}, 0.7)
    assert set(found.values()) == {"p0000"}


@pytest.mark.parametrize(
    ("text", "then", "now"),
    [
        ("员工每年享有三十天带薪年假，须提前十个工作日在系统中申请，经理应在三个工作日内答复。未休完的假期最多可结转五天，并于七月一日失效。", "三十天", "二十天"),
        ("従業員は年に30日の有給休暇を取得できます。休暇は10営業日前までにシステムで申請してください。上司は3営業日以内に回答します。", "30日", "28日"),
        ("พนักงานทุกคนมีสิทธิลาพักร้อนปีละ 30 วัน ต้องยื่นคำขอในระบบล่วงหน้าอย่างน้อยสิบวันทำการ หัวหน้าจะตอบภายในสามวันทำการ", "30 วัน", "28 วัน"),
    ],
    ids=["Chinese", "Japanese", "Thai"],
)  # fmt: skip
def test_a_version_with_another_number_is_a_near_duplicate_where_no_spaces_are_written(
    text: str, then: str, now: str
) -> None:
    other = "这是一份完全不同的文件，讲的是办公室的停车位和访客证。"
    signatures = {"a": signature(text), "b": signature(text.replace(then, now)), "c": signature(other)}
    found = groups(signatures, 0.7)
    assert found["a"] == found["b"] != found["c"]


def test_the_spelling_of_letters_that_came_first_makes_no_other_groups(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    text = "Für Überstunden über Mittag gelten die Regeln der Gleitzeit, geprüft vom Büro für Lohn und Gehälter."
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    groups_of = []
    for first, second in ((composed, apart), (apart, composed)):
        for name, content in (("a.md", first), ("b.md", second), ("c.md", f"{first} Mai")):
            (folder / name).write_text(content, encoding="utf-8")
            ingest_documents(store, settings_for())
            split_documents(store, settings_for())
        with store.warehouse.read() as connection:
            query = "SELECT near_duplicate_group FROM chunks ORDER BY doc_path"
            groups_of.append([row[0] for row in connection.execute(query).fetchall()])
    assert groups_of[0] == groups_of[1]
    assert len(set(groups_of[0])) == 1
