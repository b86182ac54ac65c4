"""What the offline question generator knows about the whole collection.

Questions are cached by what their writer reads (docs/increments.md), so everything that comes from the collection and not
from the passage is made coarse here: an edited document must not rewrite the questions of unrelated passages.

* No count of all passages is used: it changes with every edit.
* Rarity is a logarithmic level, and where a level begins is shifted by a hash of the term and the reader
  (dithered quantisation). A frequent term that gains one passage then moves to the next level for a handful of
  readers, not for all of them on the same day.
* Associations need support in several passages and are ranked on a coarse scale.
* A passage that does not tell its own language takes the one of most passages of its document, and only where none of
  those tells it the one of most documents.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b

from acme_rag_pipeline.documents.parsers import format_of
from acme_rag_pipeline.pairs.analyzer import ENGLISH_ANALYZER, Analyzer, analyzer_of
from acme_rag_pipeline.pairs.as_markdown import as_markdown
from acme_rag_pipeline.pairs.languages import ENGLISH, language_of, most_common_language
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.plain_text import blocks, normal_form, sentences, strip_markup, without_site_markup, words

MAX_CHARACTERS = 20_000
"""Longer passages are read up to here: a question about one passage needs no more."""

_GENERIC_HEADINGS = frozenset(
    """about;additional information;additional resources;appendix;background;conclusion;contact;contact us;contents;
    details;example;examples;faq;faqs;frequently asked questions;further reading;general;getting started;help;
    introduction;links;more;more information;notes;other;overview;purpose;questions;references;related;resources;rules;
    scope;steps;summary;table of contents;tips;what to do;
    allgemein;allgemeines;anhang;ansprechpartner;einleitung;fragen;geltungsbereich;hinweise;häufige fragen;inhalt;
    inhaltsverzeichnis;kontakt;sonstiges;überblick;übersicht;weitere informationen;zusammenfassung;zweck;
    annexe;champ d'application;généralités;objet;questions fréquentes;sommaire;voir aussi;
    alcance;contacto;contatti;contenido;domande frequenti;generalidades;introducción;introduzione;inleiding;objeto;
    oggetto;overzicht;preguntas frecuentes;resumen;samenvatting;veelgestelde vragen""".replace("\n    ", "").split(";")
)
_GENERIC_DOCUMENTS = 3
_ACRONYM = r"[A-Z][A-Z0-9&]{1,7}"
_EXPANSION_WORD = r"[^\W\d_][\w'’&/-]{0,30}"
_LONG_THEN_SHORT = re.compile(rf"((?:{_EXPANSION_WORD}[ ]){{2,9}})\(({_ACRONYM})s?\)")
_SHORT_THEN_LONG = re.compile(
    rf"\b({_ACRONYM})s?[ ]?(?:\(|[-–—:][ ])[ ]?({_EXPANSION_WORD}(?:[ ]{_EXPANSION_WORD}){{1,8}})"
)
_LONG_SECTION = 8
_LEVEL_FACTOR = 8
_MIN_SUPPORT = 6
_MAX_ASSOCIATE_FREQUENCY = 32
_MIN_DICE = 0.5
_MAX_TERMS_PER_PASSAGE = 200


@dataclass(frozen=True)
class CorpusStatistics:
    """Term frequencies, acronyms, associated terms, headings and languages of a collection of passages."""

    passages_with_term: Mapping[str, int]
    expansions: Mapping[str, str]
    associates: Mapping[str, str]
    documents_with_heading: Mapping[str, int]
    passages_in_section: Mapping[tuple[str, tuple[str, ...]], int]
    language_of_document: Mapping[str, str] = field(default_factory=dict)
    language: str = ENGLISH

    @cached_property
    def expansions_by_first_word(self) -> Mapping[str, list[tuple[str, str]]]:
        """Acronyms and the normal form of what they stand for, by its first word."""
        by_word: dict[str, list[tuple[str, str]]] = {}
        for short, expansion in self.expansions.items():
            phrase = normal_form(expansion)
            by_word.setdefault(phrase.split(" ")[0], []).append((short, phrase))
        return by_word

    @classmethod
    def from_passages(cls, passages: Iterable[Passage], *, with_associates: bool = False) -> CorpusStatistics:
        """Count once over all passages; the result does not depend on their order.

        Args:
            passages: The whole collection.
            with_associates: Also find associated terms, for `OfflineParameters.swap_associates`: half of the cost.
        """
        frequency: Counter[str] = Counter()
        long_forms: Counter[tuple[str, str]] = Counter()
        headings: set[tuple[str, str]] = set()
        sections: Counter[tuple[str, tuple[str, ...]]] = Counter()
        term_sets: list[frozenset[str]] = []
        spoken: dict[str, list[str]] = {}
        undecided: list[Passage] = []

        def read(passage: Passage, language: str) -> None:
            analyzer = _analyzer(passage, language)
            terms = frozenset(passage_terms(passage, analyzer))
            term_sets.append(terms)
            frequency.update(terms)
            long_forms.update(set(find_acronyms(readable_text(passage), analyzer)))

        for passage in passages:
            language = language_of(passage_words(passage))
            languages = spoken.setdefault(passage.doc_path, [])
            if language is None:
                undecided.append(passage)
            else:
                languages.append(language)
                read(passage, language)
            headings.update((heading_form(heading), passage.doc_path) for heading in passage.heading_path)
            sections[(passage.doc_path, passage.heading_path)] += 1
        of_document = _languages_of_documents(spoken, undecided)
        of_most = most_common_language(of_document.values()) or ENGLISH
        for passage in undecided:
            read(passage, of_document.get(passage.doc_path, of_most))
        return cls(
            passages_with_term=dict(frequency),
            expansions=_one_expansion_each(long_forms),
            associates=_associated_terms(term_sets, frequency) if with_associates else {},
            documents_with_heading=dict(Counter(heading for heading, _ in headings)),
            passages_in_section=dict(sections),
            language_of_document=of_document,
            language=of_most,
        )

    def analyzer(self, passage: Passage, beside: Sequence[str] = ()) -> Analyzer:
        """The analyzer of a passage's language: its own where it tells one, else its document's, else the commonest.

        Args:
            beside: Texts from elsewhere that queries about the passage may hold.
        """
        own = language_of(passage_words(passage))
        return _analyzer(passage, own or self.language_of_document.get(passage.doc_path, self.language), beside)

    def rarity_level(self, term: str, reader: bytes) -> int:
        """Level of rarity as seen by one reader: 0 for the rarest, one more for each eightfold frequency.

        Up to eight passages the level is 0: below that, counts say more about the last edit than about the term.
        """
        frequency = max(_LEVEL_FACTOR, self.passages_with_term.get(term, 1)) / _LEVEL_FACTOR
        if frequency == 1:
            return 0
        digest = blake2b(term.encode("utf-8", "replace"), key=reader[:64], digest_size=4).digest()
        return math.floor(math.log(frequency, _LEVEL_FACTOR) + int.from_bytes(digest, "big") / 2**32)

    def is_generic_heading(self, heading: str) -> bool:
        """Whether a heading says nothing about its section: a stock phrase, or one that many documents share."""
        shared_by = self.documents_with_heading.get(heading_form(heading), 0)
        return is_stock_phrase(heading) or shared_by >= _GENERIC_DOCUMENTS

    def shares_section(self, passage: Passage) -> bool:
        """Whether other passages stand under the same heading, so that the heading alone does not name this one."""
        return self.passages_in_section.get((passage.doc_path, passage.heading_path), 1) > 1

    def has_long_section(self, passage: Passage) -> bool:
        """Whether so many passages stand under the same heading that few of them answer what it asks."""
        return self.passages_in_section.get((passage.doc_path, passage.heading_path), 1) > _LONG_SECTION


def readable_text(passage: Passage) -> str:
    """What is read of a passage's text, as a whole table where it begins inside of one."""
    head = f"{passage.lead}\n|---|\n" if passage.lead else ""
    return without_site_markup(as_markdown(f"{head}{passage.text[:MAX_CHARACTERS]}", format_of(passage.doc_path)))


def passage_terms(passage: Passage, analyzer: Analyzer = ENGLISH_ANALYZER) -> list[str]:
    """Content words of a passage, its code left out, and of its headings."""
    return [word for text in _texts(passage) for word in analyzer.content_words(text)]


def passage_words(passage: Passage) -> list[str]:
    """Lower-case words of a passage, its code left out, and of its headings: what tells its language."""
    return [word.lower() for text in _texts(passage) for word in words(text)]


def _analyzer(passage: Passage, language: str, beside: Sequence[str] = ()) -> Analyzer:
    if language == ENGLISH:
        return ENGLISH_ANALYZER
    read = [block.text for block in blocks(readable_text(passage))]
    return analyzer_of(
        language, "\n".join((*read, *map(strip_markup, (*passage.heading_path, passage.title)), *beside))
    )


def _texts(passage: Passage) -> list[str]:
    found = [block.text for block in blocks(readable_text(passage)) if block.kind != "code"]
    return [*found, *map(strip_markup, passage.heading_path)]


def _languages_of_documents(spoken: Mapping[str, Sequence[str]], undecided: Sequence[Passage]) -> dict[str, str]:
    """The commonest language of each document's passages; where none tells one, what they tell together, if anything."""
    found = {path: most for path, languages in spoken.items() if (most := most_common_language(languages))}
    together: dict[str, list[Passage]] = {}
    for passage in undecided:
        if passage.doc_path not in found:
            together.setdefault(passage.doc_path, []).append(passage)
    for path, passages in together.items():
        prose = [
            word.lower()
            for passage in passages
            for block in blocks(readable_text(passage))
            for sentence in sentences(block)
            for word in words(sentence)
        ]
        everything = [word for passage in passages for word in passage_words(passage)]
        if language := language_of(everything) or language_of(prose, of_prose=True):
            found[path] = language
    return found


def is_stock_phrase(heading: str) -> bool:
    """Whether a heading names no topic in any collection: "Overview", "FAQ", a number."""
    form = heading_form(heading)
    return not form or form in _GENERIC_HEADINGS


def heading_form(heading: str) -> str:
    """Heading without its number, so that "1. Overview" and "Overview" are one."""
    return " ".join(word.lower() for word in words(strip_markup(heading)) if not word.isnumeric())


def find_acronyms(text: str, analyzer: Analyzer = ENGLISH_ANALYZER) -> list[tuple[str, str]]:
    """(acronym, expansion) pairs that a text spells out, in either order, with matching initials.

    After Schwartz and Hearst, "A simple algorithm for identifying abbreviation definitions" (2003), reduced to
    initials: it misses some true pairs and makes up almost none.
    """
    plain = strip_markup(" ".join(text.split()))
    found = []
    for match in _LONG_THEN_SHORT.finditer(plain):
        if expansion := _matching_suffix(match[1].split(), match[2], analyzer):
            found.append((match[2], expansion))
    for match in _SHORT_THEN_LONG.finditer(plain):
        if expansion := _matching_prefix(match[2].split(), match[1], analyzer):
            found.append((match[1], expansion))
    return found


def _initials_match(expansion: Sequence[str], acronym: str, analyzer: Analyzer) -> bool:
    letters = [letter for letter in acronym.lower() if letter.isalpha()]
    pieces = [piece for word in expansion for piece in re.split(r"[-/]", word.lower()) if piece]
    every = [analyzer.initial(piece) for piece in pieces]
    content = [analyzer.initial(piece) for piece in pieces if piece == pieces[0] or analyzer.is_content(piece)]
    return len(letters) >= 2 and analyzer.is_content(expansion[0].lower()) and letters in (every, content)


def _matching_suffix(long: Sequence[str], acronym: str, analyzer: Analyzer) -> str | None:
    for start in range(len(long) - 1, -1, -1):
        if _initials_match(long[start:], acronym, analyzer):
            return " ".join(long[start:])
    return None


def _matching_prefix(long: Sequence[str], acronym: str, analyzer: Analyzer) -> str | None:
    for end in range(2, len(long) + 1):
        if _initials_match(long[:end], acronym, analyzer) and analyzer.is_content(long[end - 1].lower()):
            return " ".join(long[:end])
    return None


def _one_expansion_each(long_forms: Counter[tuple[str, str]]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for (acronym, expansion), _ in sorted(long_forms.items(), key=lambda item: (-item[1], item[0])):
        chosen.setdefault(acronym, expansion)
    return chosen


def _associated_terms(term_sets: Sequence[frozenset[str]], frequency: Mapping[str, int]) -> dict[str, str]:
    """The term that keeps most company with each term, by Dice coefficient of their passages in tenths.

    Dice and not PPMI: it needs no count of all passages, which every edit changes, and it does not favour the
    rarest words, which every edit changes too. The bounds are high because a weak association turns with every
    edit: from 3 passages and 0.2 on, one deleted paragraph of 554 changed up to 72 other prompts, with these at most 5.
    """
    import numpy as np
    from scipy.sparse import csr_array

    vocabulary = sorted(term for term, count in frequency.items() if _MIN_SUPPORT <= count <= _MAX_ASSOCIATE_FREQUENCY)
    if not vocabulary:
        return {}
    column = {term: index for index, term in enumerate(vocabulary)}
    counts = np.array([frequency[term] for term in vocabulary])
    rows = [sorted(column[term] for term in terms if term in column) for terms in term_sets]
    # A passage contributes its rarest terms only, so that a huge one costs no more than the others.
    rows = [sorted(row, key=lambda index: (counts[index], index))[:_MAX_TERMS_PER_PASSAGE] for row in rows]
    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter((index for row in rows for index in row), dtype=np.int64, count=int(indptr[-1]))
    occurrence = csr_array((np.ones(len(indices), dtype=np.int32), indices, indptr), shape=(len(rows), len(vocabulary)))
    transposed = csr_array(occurrence.T)
    found: dict[str, str] = {}
    for start in range(0, len(vocabulary), 4096):
        together = csr_array(transposed[start : start + 4096] @ occurrence)
        for offset in range(together.shape[0]):
            low, high = together.indptr[offset], together.indptr[offset + 1]
            others, joint = together.indices[low:high], together.data[low:high]
            term = vocabulary[start + offset]
            dice = 2 * joint / (counts[start + offset] + counts[others])
            kept = np.flatnonzero((joint >= _MIN_SUPPORT) & (dice >= _MIN_DICE) & (others != start + offset))
            ranked = sorted((-round(float(dice[i]) * 10), vocabulary[others[i]]) for i in kept)
            if best := next((other for _, other in ranked if not _same_root(term, other)), None):
                found[term] = best
    return found


def _same_root(first: str, second: str) -> bool:
    return first in second or second in first or first[:4] == second[:4]


def acronyms_in(text: str) -> list[str]:
    """Words of `text` that look like acronyms, in order, each once."""
    return list(dict.fromkeys(word for word in words(text) if re.fullmatch(_ACRONYM, word)))
