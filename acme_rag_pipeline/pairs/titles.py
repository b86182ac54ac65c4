"""What a document's title says about its topic: no stock phrase, and of a file's name only its words."""

from __future__ import annotations

import re
from urllib.parse import unquote

from acme_rag_pipeline.documents.titles import title_of_file_name
from acme_rag_pipeline.pairs.corpus_statistics import is_stock_phrase
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.plain_text import words

_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_GAPS = re.compile(r"[-_\s]+")
_DATE = re.compile(
    r"(?<![\d.])(?:(?:19|20)\d\d(?:[ .]?(?:0[1-9]|1[0-2])[ .]?(?:0[1-9]|[12]\d|3[01])|[ .](?:0[1-9]|1[0-2]))"
    r"|\d{1,2}[ .]\d{1,2}[ .](?:19|20)\d\d)(?![\d.]*\d)"
)
# "2024 budget" is asked for with its year, "0007 use postgres" not with its number.
_NUMBER = re.compile(r"^(?!(?:19|20)\d\d\b)\d{3,}(?:\s+|$)")
_VERSION = re.compile(r"v?\d[\d.]*")
_NAMELESS = """
bild copy datei document dokument draft dsc entwurf file final foto image img index kopie neu new photo readme scan
screenshot unbenannt untitled
"""
_FILE_WORDS = frozenset(_NAMELESS.split())


def title_topic(passage: Passage) -> str:
    """The title of a passage's document as queries may name it; empty where it names no topic.

    A function of the passage alone: were it to depend on other titles, their edits would rewrite this one's queries.
    """
    title = passage.title
    if title == title_of_file_name(passage.doc_path):
        title = _words_of_file_name(title)
    return "" if is_stock_phrase(title) else title


def _words_of_file_name(title: str) -> str:
    if _ENCODED.search(title):
        title = _GAPS.sub(" ", unquote(title))
    plain = _NUMBER.sub("", " ".join(_DATE.sub(" ", title).split()))
    telling = [
        word for word in map(str.lower, words(plain)) if word not in _FILE_WORDS and not _VERSION.fullmatch(word)
    ]
    return plain if telling else ""
