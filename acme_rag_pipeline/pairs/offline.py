"""The embedded question generator: no model, no key, no network, the same queries on every machine.

`render` gathers all that the writer may know about a passage into one canonical string: its "prompt", whose sha256
keys the answer cache as for an LLM. `write` is a pure function of that string. docs/offline-generator.md tells
what each method is worth, measured.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256

from acme_rag_pipeline.pairs.analyzer import Analyzer
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics, acronyms_in, passage_terms, readable_text
from acme_rag_pipeline.pairs.offline_methods import METHODS, ONLY_ENGLISH
from acme_rag_pipeline.pairs.offline_source import Source
from acme_rag_pipeline.pairs.passage import Passage, WrittenQuery
from acme_rag_pipeline.pairs.plain_text import normal_form, strip_markup
from acme_rag_pipeline.pairs.question_forms import begins_like_question, has_question_mark
from acme_rag_pipeline.pairs.titles import title_topic

GENERATOR_VERSION = "offline-5"
"""Part of every rendered prompt: raise it when `write` changes, so that cached queries are written anew."""

OTHER_LANGUAGES_VERSION = "1"
"""Part of the prompts in other languages only: raise this one when `write` changes for no English passage."""

DEFAULT_METHODS = tuple(METHODS)
MIN_WORDS, MAX_WORDS, MAX_QUERY_CHARACTERS = 3, 25, 240
# German and Dutch write in one word what English writes in two or three.
MIN_WORDS_ELSEWHERE = 2
_BRACKETS = re.compile(r"[()]")
# "(CHI-16)?" leaves no space before the question mark.
_BRACKET_AT_END = re.compile(r"\)(?=[?!.,;:])")
_GAP = re.compile(r" +(?=[,:;?!](?: |$))")
# “English”, „German“, ”Swedish”, «French», »Danish«.
_OPENED_BY = {"”": "“„”", "“": "„", "»": "«", "«": "»"}
_TERMS = 12
_SWAPS = 3
_IDF_TOP = 5
_MAX_ACRONYM_LEVEL = 2


@dataclass(frozen=True, slots=True)
class OfflineParameters:
    """What a run may choose.

    Attributes:
        queries_per_chunk: How many queries a passage gets at most.
        methods: The methods that write them, the preferred first.
        swap_associates: Whether keyphrases may be swapped for words that keep their company in the collection. Off:
            it gained nothing (docs/experiments/offline-generator.md) and ties a passage's queries to other documents.
    """

    queries_per_chunk: int = 4
    methods: tuple[str, ...] = DEFAULT_METHODS
    swap_associates: bool = False

    def __post_init__(self) -> None:
        if self.queries_per_chunk < 1:
            raise ValueError("queries_per_chunk must be at least 1")
        if unknown := sorted(set(self.methods) - set(METHODS)):
            raise ValueError(f"unknown methods {unknown}; known are {sorted(METHODS)}")


def render(passage: Passage, statistics: CorpusStatistics, parameters: OfflineParameters) -> str:
    """Everything that `write` reads, as canonical JSON.

    Of the collection it holds decisions, not counts: which terms of the passage are important, which headings
    are generic, the acronyms and associated terms in question. Most edits elsewhere change none of them. Where the
    passage is not in English, `function_words` are those of its words, sorted, that carry no topic in its language.
    """
    text = _clean(readable_text(passage))
    reader = sha256(text.encode("utf-8")).digest()
    headings = [_clean(heading) for heading in passage.heading_path]
    title = _clean(title_topic(passage))
    acronyms = _relevant_acronyms(" \n ".join((title, *headings, text)), statistics, reader)
    analyzer = statistics.analyzer(passage, list(acronyms.values()))
    counts = Counter(passage_terms(passage, analyzer))
    terms = _important_terms(counts, statistics, reader)
    content = {
        "generator": GENERATOR_VERSION,
        "queries_per_chunk": parameters.queries_per_chunk,
        "methods": parameters.methods,
        "text": text,
        "title": title,
        "headings": headings,
        "generic": [statistics.is_generic_heading(heading) for heading in passage.heading_path],
        "shares_section": statistics.shares_section(passage),
        "terms": terms,
        "acronyms": acronyms,
        "associates": _swaps(terms, counts, statistics) if parameters.swap_associates else {},
    }
    asks = any(begins_like_question(plain) or has_question_mark(plain) for plain in map(strip_markup, headings))
    if asks and statistics.has_long_section(passage):
        content["long_section"] = True
    if analyzer.function_words is not None:
        content["other_languages"] = OTHER_LANGUAGES_VERSION
        content["function_words"] = sorted(map(_clean, analyzer.function_words))
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def write(rendered: str) -> list[WrittenQuery]:
    """Queries for one rendered passage: the best of each method first, then second bests, up to the quota."""
    content = json.loads(rendered)
    function_words = content.get("function_words")
    source = Source(
        seed=sha256(rendered.encode("ascii")).digest(),
        text=content["text"],
        title=content["title"],
        headings=tuple(content["headings"]),
        generic=tuple(content["generic"]),
        shares_section=content["shares_section"],
        terms=tuple(content["terms"]),
        acronyms=content["acronyms"],
        associates=content["associates"],
        analyzer=Analyzer(None if function_words is None else frozenset(function_words)),
        long_section=content.get("long_section", False),
    )
    if not source.body_words:
        return []
    return _mixed(source, content["methods"], content["queries_per_chunk"])


def _mixed(source: Source, methods: list[str], quota: int) -> list[WrittenQuery]:
    analyzer = source.analyzer
    forbidden = {normal_form(text) for block in source.blocks for text in (block.text, *analyzer.sentences(block))}
    forbidden |= {normal_form(text) for text in source.sentences}
    offered = {name: METHODS[name](source) for name in methods if analyzer.is_english or name not in ONLY_ENGLISH}
    chosen: list[WrittenQuery] = []
    word_sets: list[frozenset[str]] = []
    copies = 0
    while offered and len(chosen) < quota:
        for name in list(offered):
            if len(chosen) >= quota:
                break
            for form in offered[name]:
                query = bounded(form.text, english=analyzer.is_english)
                kept = frozenset(analyzer.content_words(query))
                is_copy = kept <= source.body_words
                is_whole = query.endswith("?") or not form.text.endswith("?")
                allowed = is_whole and _has_length(query, name, analyzer) and normal_form(query) not in forbidden
                if not allowed or not _is_new(kept, word_sets) or (is_copy and 2 * copies > quota):
                    continue
                chosen.append(WrittenQuery(query, form.style, name))
                word_sets.append(kept)
                copies += is_copy
                break
            else:
                del offered[name]
    return chosen


def _has_length(query: str, method: str, analyzer: Analyzer) -> bool:
    if analyzer.is_english:
        count, minimum = len(query.split()), MIN_WORDS
    else:
        count, minimum = len(analyzer.words(query)), MIN_WORDS_ELSEWHERE
    return (1 if method == "identifier" else minimum) <= count <= MAX_WORDS


def _is_new(kept: frozenset[str], word_sets: list[frozenset[str]]) -> bool:
    return bool(kept) and all(len(kept & other) < 0.75 * len(kept | other) for other in word_sets)


def bounded(text: str, *, english: bool = True) -> str:
    """One line of plain words within the bounds of a query."""
    plain = " ".join(_BRACKETS.sub(" ", _BRACKET_AT_END.sub("", strip_markup(text))).split())
    # French sets a space before ":" and "?".
    plain = _GAP.sub("", plain) if english else plain.replace(" ,", ",")
    query = " ".join(plain.split()[:MAX_WORDS])
    if len(query) > MAX_QUERY_CHARACTERS:
        query = query[:MAX_QUERY_CHARACTERS].rsplit(" ", 1)[0]
    return _without_half_pairs(query.strip(' ,;:-–—/"“”„«»'))


def _without_half_pairs(text: str) -> str:
    """`text` without the quotation marks whose other half was left out."""
    unpaired: list[int] = []
    for place, mark in enumerate(text):
        if mark not in '"“”„«»':
            continue
        before = text[unpaired[-1]] if unpaired else " "
        closes = text[place - 1] != " " if before == mark == '"' else before in _OPENED_BY.get(mark, "")
        if closes:
            unpaired.pop()
        else:
            unpaired.append(place)
    return " ".join("".join(mark for place, mark in enumerate(text) if place not in unpaired).split())


def _important_terms(counts: Counter[str], statistics: CorpusStatistics, reader: bytes) -> list[str]:
    """The best terms by TF-IDF on coarse levels, in order of appearance.

    Which terms, not in which order: an order by TF-IDF would turn with each small change of a frequency elsewhere.
    """
    first = {term: position for position, term in enumerate(counts)}
    scores = {
        term: (1 + math.log2(count)) * max(0.5, _IDF_TOP - statistics.rarity_level(term, reader))
        for term, count in counts.items()
    }
    best = sorted(scores, key=lambda term: (-scores[term], first[term]))[:_TERMS]
    return [_clean(term) for term in sorted(best, key=first.__getitem__)]


def _swaps(terms: list[str], counts: Counter[str], statistics: CorpusStatistics) -> dict[str, str]:
    """Associates of the few terms that the passage says most, which lead its keyphrases: more would be less stable."""
    leading = sorted(terms, key=lambda term: (-counts[term], terms.index(term)))[:_SWAPS]
    return {term: statistics.associates[term] for term in leading if term in statistics.associates}


def _relevant_acronyms(text: str, statistics: CorpusStatistics, reader: bytes) -> dict[str, str]:
    present = acronyms_in(text)
    found = {short: statistics.expansions[short] for short in present if short in statistics.expansions}
    lowered = f" {normal_form(text)} "
    for word in set(lowered.split(" ")):
        for short, phrase in statistics.expansions_by_first_word.get(word, ()):
            if short not in found and f" {phrase} " in lowered:
                found[short] = statistics.expansions[short]
    # The company's own name stands everywhere and tells no passage from another.
    telling = [short for short in found if statistics.rarity_level(short.lower(), reader) <= _MAX_ACRONYM_LEVEL]
    return {short: found[short] for short in sorted(telling)[:8]}


def _clean(text: str) -> str:
    # A lone surrogate survives JSON but no database and no UTF-8 file.
    return text.encode("utf-8", "ignore").decode("utf-8").replace("\x00", " ")
