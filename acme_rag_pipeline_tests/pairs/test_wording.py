"""When two wordings of a query are one, and when they only look alike."""

from __future__ import annotations

import unicodedata
from itertools import combinations

import pytest

from acme_rag_pipeline.pairs.wording import query_key, word_overlap


@pytest.mark.parametrize(
    "wordings",
    [
        ("What may a hotel cost?", " what may a HOTEL\tcost", "«What may a hotel cost»", "What may a hotel cost…"),
        ("Wo ist die Straße?", "WO IST DIE STRASSE"),
        ("Who runs e-mail & phones?", "who runs e‑mail / phones"),
        ("50% off?", "50 % off"),
        ("colder than -5 °C", "Colder than −5 °C?"),
        (unicodedata.normalize("NFD", "Où est le café ?"), "où est le café"),
        ("soft\u00adware", "software"),
    ],
)
def test_case_whitespace_and_punctuation_are_folded(wordings: tuple[str, ...]) -> None:
    assert len({query_key(wording) for wording in wordings}) == 1, wordings


@pytest.mark.parametrize(
    "wordings",
    [
        ("How do I learn C?", "How do I learn C++?", "How do I learn C#?"),
        ("is 5 enough", "is 5 % enough", "is 5 € enough", "is <5 enough", "is >5 enough", "is -5 enough"),
        ("कल", "काल", "कील", "कुल"),  # tomorrow, time, nail, total
        ("ที่", "ทิ", "ทุ"),
        ("how much is a peche", "how much is a pêche", "how much is a péché"),
        ("user_id", "userid"),
    ],
)
def test_what_tells_two_questions_apart_stays(wordings: tuple[str, ...]) -> None:
    assert [pair for pair in combinations(wordings, 2) if len({query_key(w) for w in pair}) == 1] == []


def test_overlap_counts_whole_words_in_any_script() -> None:
    assert word_overlap("Which hotel is cheap?", "Hotels are, a HOTEL is not") == pytest.approx(1 / 3, abs=1e-4)
    # Without their vowel signs these would be no words of four characters at all.
    assert word_overlap("कार्यालय किताबें", "कार्यालय कहाँ है") == 0.5
    assert word_overlap("a b?", "a b") == 0.0


def test_overlap_leaves_out_the_function_words_of_the_passages_language() -> None:
    german = "Die Belege werden nach der Reise hochgeladen, eine Kopie bleibt im Ordner."
    assert word_overlap("Welche Belege werden für eine Fortbildung verlangt?", german) == pytest.approx(1 / 3, abs=1e-4)
    french = "Le remboursement de l'hôtel est dans le portail, avec les autres frais."
    assert word_overlap("dans quel hôtel", french) == 1.0
    assert word_overlap("年假申请", "员工应当提前两周在人事系统提交年假申请。") == 1.0
