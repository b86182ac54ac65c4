"""The embedded generator on handbooks in other languages than English, alone and side by side with English ones."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.pairs.analyzer import Analyzer, analyzer_of
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics, find_acronyms
from acme_rag_pipeline.pairs.languages import UNLISTED, function_words, language_of
from acme_rag_pipeline.pairs.offline import MAX_QUERY_CHARACTERS, MAX_WORDS, OfflineParameters, render, write
from acme_rag_pipeline.pairs.offline_methods import METHODS, ONLY_ENGLISH
from acme_rag_pipeline.pairs.passage import Passage, WrittenQuery
from acme_rag_pipeline.pairs.plain_text import Block, words
from acme_rag_pipeline_tests.pairs.handbooks import LANGUAGES, handbook

EVERYTHING = OfflineParameters(queries_per_chunk=2 * len(METHODS))
MIXED = [passage for language in ["en", *LANGUAGES] for passage in handbook(language)]
GLUE = {"what", "how", "should", "know", "about", "looking", "information", "for", "stand", "is", "the", "does"}
SWAHILI = (
    "Mfanyakazi anapaswa kuomba likizo angalau wiki mbili kabla ya siku ya kwanza kupitia mfumo wa wafanyakazi. Msimamizi"
    " huidhinisha ombi hilo ndani ya siku tatu za kazi. Iwapo mfanyakazi ataugua wakati wa likizo, lazima awasilishe cheti"
    " cha daktari siku ya kwanza. Siku ambazo hazijatumiwa hupotea mwishoni mwa mwezi wa tatu, isipokuwa kama kuna sababu"
    " za dharura za kikazi. Ombi linajazwa kwenye fomu maalum na kutumwa kwa idara ya rasilimali watu."
)


def written(passages: list[Passage], collection: list[Passage]) -> list[WrittenQuery]:
    statistics = CorpusStatistics.from_passages(collection)
    return [query for passage in passages for query in write(render(passage, statistics, EVERYTHING))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_handbook_gets_queries_without_english_words(language: str) -> None:
    passages = handbook(language)
    queries = written(passages, MIXED)
    assert len(queries) >= 3 * len(passages)
    assert not ONLY_ENGLISH & {query.method for query in queries}
    # "is" is Dutch too, "know" is nothing else.
    glue = GLUE - frozenset(word.lower() for one in passages for word in words(one.text))
    assert not [query for query in queries if glue & set(query.query.lower().split())]
    # Beside documents in other languages as alone.
    assert {q.query for q in written(passages, passages)} & {q.query for q in queries}


@pytest.mark.parametrize("language", LANGUAGES)
def test_function_words_are_no_keyphrases(language: str) -> None:
    listed = function_words(language)
    assert listed is not None
    queries = [query.query for query in written(handbook(language), MIXED) if query.method == "keyphrase"]
    assert queries
    assert not [query for query in queries if listed & set(query.lower().split())]


def test_samples() -> None:
    german = {query.query for query in written(handbook("de"), MIXED)}
    assert {
        "Urlaubsantrag stellen",
        "HR-12 sonderurlaub",
        "Wie viele Urlaubstage habe ich im ersten Jahr?",
    } <= german
    assert german & {f"{row} {column}" for row in ("Sonderurlaub", "Umzug") for column in ("Frist", "Formular")}
    assert not [query for query in german if len({word.lower() for word in query.split()}) < 2]
    french = {query.query for query in written(handbook("fr"), MIXED)}
    assert {"Demande de congé", "congés payés demande de congé", "Perte de l'ordinateur portable"} <= french
    assert "viajes de empresa reserva de hoteles" in {query.query for query in written(handbook("es"), MIXED)}


def test_english_is_written_as_without_the_other_languages() -> None:
    english = handbook("en")
    alone, beside = CorpusStatistics.from_passages(english), CorpusStatistics.from_passages(MIXED)
    for passage in english:
        assert render(passage, beside, EVERYTHING) == render(passage, alone, EVERYTHING)
        assert "function_words" not in json.loads(render(passage, alone, EVERYTHING))
    assert any(query.query.startswith("What is the hotel limit for") for query in written(english, MIXED))


def test_a_table_takes_the_language_of_its_document_then_of_most_documents() -> None:
    table = next(passage for passage in handbook("de") if "|" in passage.text)
    assert language_of([word.lower() for word in words(table.text)]) is None
    alone = replace(table, doc_path="table.md")
    for passage, collection in ((table, MIXED), (alone, [alone, *handbook("de")]), (alone, [alone, *handbook("fr")])):
        assert "function_words" in json.loads(render(passage, CorpusStatistics.from_passages(collection), EVERYTHING))
    english = CorpusStatistics.from_passages([alone, *handbook("en")])
    assert "function_words" not in json.loads(render(alone, english, EVERYTHING))


def test_another_document_leaves_the_prompts_alone() -> None:
    fewer = [passage for passage in MIXED if passage.doc_path != "de/reisekosten.md"]
    before, after = CorpusStatistics.from_passages(MIXED), CorpusStatistics.from_passages(fewer)
    assert all(render(one, before, EVERYTHING) == render(one, after, EVERYTHING) for one in fewer)
    assert before == CorpusStatistics.from_passages(MIXED[::-1])


@pytest.mark.parametrize("language", [*LANGUAGES, "en"])
def test_prose_tells_its_language(language: str) -> None:
    prose = [passage for passage in handbook(language) if "|" not in passage.text and len(words(passage.text)) > 10]
    assert {language_of([word.lower() for word in words(passage.text)]) for passage in prose} == {language}


def test_a_language_without_a_list_is_not_written_in_english() -> None:
    swahili = Passage("s", "likizo.md", "Likizo", ("Likizo", "Kuomba likizo"), SWAHILI)
    queries = written([swahili], [swahili, *handbook("en")])
    assert len(queries) >= 3
    assert not [query for query in queries if GLUE & set(query.query.lower().split())]
    assert "ya" not in " ".join(query.query for query in queries if query.method == "keyphrase").split()
    assert language_of([word.lower() for word in words(SWAHILI)], of_prose=True) == UNLISTED


def test_words_of_other_languages() -> None:
    french = analyzer_of("fr", "Il faut prévenir l'employeur qu'une absence aujourd'hui dure")
    assert french.content_words("prévenir l'employeur qu’une absence aujourd'hui") == [
        "prévenir",
        "employeur",
        "absence",
    ]
    hindi = Analyzer(frozenset())
    assert hindi.words("कार्यालय की किताबें।") == ["कार्यालय", "की", "किताबें"]
    decomposed = unicodedata.normalize("NFD", "Kündigungsfrist für Führungskräfte")
    assert analyzer_of("de", decomposed).content_words(decomposed) == ["kündigungsfrist", "führungskräfte"]
    assert hindi.words("人事ポータルで申請") == ["人事", "ポータル", "で", "申請"]
    borrowed = analyzer_of("de", "Der Code of Conduct gilt für jedes Kind")
    assert borrowed.content_words("Code of Conduct Kind") == ["code", "conduct", "kind"]


def test_sentences_do_not_end_at_ordinals_and_abbreviations() -> None:
    text = "Resturlaub verfällt am 31. März, z. B. bei Umzug. Danach gilt Nr. 4. हिंदी यहाँ है। अगला वाक्य।"
    assert len(Analyzer(frozenset()).sentences(Block("prose", text))) == 3


def test_acronyms_skip_the_function_words_of_their_language() -> None:
    text = "le contrat à durée indéterminée (CDI) et l'avis du comité social et économique (CSE)"
    assert dict(find_acronyms(text, analyzer_of("fr", text))) == {
        "CDI": "contrat à durée indéterminée",
        "CSE": "comité social et économique",
    }


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(
        st.one_of(st.text(max_size=80), st.sampled_from([line for p in MIXED for line in p.text.splitlines()])),
        max_size=8,
    ).map("\n".join),
    headings=st.lists(st.one_of(st.text(max_size=40), st.sampled_from(["有給休暇？", "هل يمكن؟", "दिन"])), max_size=3),
)
def test_any_text_in_a_collection_of_another_language_gives_bounded_queries(text: str, headings: list[str]) -> None:
    one = Passage("x", "x.md", "Titel", tuple(headings), text)
    rendered = render(one, CorpusStatistics.from_passages([one, *handbook("de")]), EVERYTHING)
    queries = write(rendered)
    assert queries == write(rendered)
    for query in queries:
        assert 1 <= len(query.query.split()) <= MAX_WORDS
        assert len(query.query) <= MAX_QUERY_CHARACTERS
        assert "\n" not in query.query
        query.query.encode("utf-8")
