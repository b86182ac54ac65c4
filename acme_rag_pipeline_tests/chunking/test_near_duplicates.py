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
from acme_rag_pipeline.chunking.near_duplicates import (
    MISSED_WEIGHT,
    PERMUTATIONS,
    SCHEME,
    SharedShingles,
    band_shape,
    groups,
    shingles,
    signature,
)
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store

RNG = random.Random(1)
WORDS = [f"word{number}" for number in range(400)]


def passage() -> list[str]:
    return [RNG.choice(WORDS) for _ in range(120)]


def grouped(texts: dict[str, str], similarity: float) -> dict[str, str]:
    return groups(texts, {key: signature(text) for key, text in texts.items()}, similarity)


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def test_a_variant_joins_its_original_and_nothing_else_does() -> None:
    texts = {f"p{number}": passage() for number in range(30)}
    texts["variant"] = [*texts["p7"][:60], "Amsterdam", *texts["p7"][61:]]
    texts["half"] = texts["p9"][:60] + passage()[:60]
    found = grouped({key: " ".join(words) for key, words in texts.items()}, 0.7)
    assert found["variant"] == found["p7"]
    assert len(set(found.values())) == len(texts) - 1
    shuffled = list(texts)
    RNG.shuffle(shuffled)
    assert grouped({key: " ".join(texts[key]) for key in shuffled}, 0.7) == found


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
    assert band_shape(similarity) == _optimal_param(similarity, PERMUTATIONS, 1 - MISSED_WEIGHT, MISSED_WEIGHT)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7])
def test_the_groups_are_those_of_the_library_s_index(similarity: float) -> None:
    originals = [passage() for _ in range(12)]
    variants = [[w if RNG.random() > share else "x" for w in RNG.choice(originals)] for share in (0.02, 0.1, 0.2) * 20]
    texts = {f"p{n}": " ".join(words) for n, words in enumerate([*originals, *variants])}
    assert grouped(texts, similarity) == _by_the_library(texts, similarity)
    assert groups({}, {}, similarity) == {}


def _by_the_library(texts: dict[str, str], similarity: float) -> dict[str, str]:
    weights = (1 - MISSED_WEIGHT, MISSED_WEIGHT)
    index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS, weights=weights)
    found = {key: {key} for key in texts}
    for key, text in texts.items():
        values = np.frombuffer(signature(text), dtype="<u8")
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1, scheme=SCHEME, hashvalues=values)
        for other in index.query(sketch):
            if jaccard(text, texts[other]) >= similarity:
                both = found[key] | found[other]
                found |= dict.fromkeys(both, both)
        index.insert(key, sketch)
    return {key: min(group) for key, group in found.items()}


@pytest.mark.parametrize("changes", [1, 3, 5, 7])
def test_a_passage_above_the_threshold_is_not_missed_and_one_below_it_is_no_member(changes: int) -> None:
    grouped_apart, near = [], 0
    for number in range(60):
        words = passage()
        changed = [f"other{n}" if n % 17 == 5 and n < 17 * changes else word for n, word in enumerate(words)]
        pair = {"a": " ".join(words), "b": " ".join(changed)}
        found = grouped(pair, 0.7)
        near += jaccard(*pair.values()) >= 0.7
        if (found["a"] == found["b"]) != (jaccard(*pair.values()) >= 0.7):
            grouped_apart.append(number)
    assert near == (60 if changes < 7 else 0)
    assert grouped_apart == []


def test_shared_shingles_are_counted_as_sets_count_them() -> None:
    numbers = [sorted(RNG.sample(range(40 if n % 2 else 400), 30)) for n in range(150)]
    shared = SharedShingles(numbers)
    for one in (0, 1, 64, 149, 2):
        expected = [len({*numbers[one]} & {*other}) / len({*numbers[one]} | {*other}) for other in numbers]
        assert shared.jaccard(one).tolist() == expected


def test_boilerplate_is_one_group_however_often_it_stands_there() -> None:
    words = passage()
    footer, variant = " ".join(words), " ".join([*words[:60], "Utrecht", *words[61:]])
    texts = {f"p{number:04}": footer for number in range(3000)} | {"a variant": variant, "other": "x"}
    signed = {text: signature(text) for text in texts.values()}
    found = groups(texts, {key: signed[text] for key, text in texts.items()}, 0.7)
    assert found["other"] == "other"
    assert set(found.values()) == {"a variant", "other"}
    assert groups({}, {}, 0.7) == {}


@pytest.mark.parametrize(("own", "of_one_group"), [(5, True), (30, False)])
def test_thousands_of_variants_of_one_form_are_one_group_or_many_without_millions_of_steps(
    own: int, of_one_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = passage()
    texts = {f"p{n:04}": " ".join([*form, *(f"own{n}x{i}" for i in range(own))]) for n in range(1000)}
    rows, jaccard_of = [], SharedShingles.jaccard
    monkeypatch.setattr(SharedShingles, "jaccard", lambda self, one: rows.append(one) or jaccard_of(self, one))
    found = grouped(texts, 0.7)
    assert set(found.values()) == ({"p0000"} if of_one_group else set(texts))
    # Each with all others at once, and not two by two.
    assert len(rows) < (20 if of_one_group else 20 * len(texts))


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
    found = grouped({"a": text, "b": text.replace(then, now), "c": other}, 0.7)
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
