"""Where in the documents of today a quoted passage stands, and which chunk that is."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from acme_rag_pipeline.documents.doc_paths import known_doc_path
from acme_rag_pipeline.pairs.wording import word_overlap
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.store.quotes import QuotableText
from acme_rag_pipeline.store.warehouse import Warehouse

_CANDIDATES = 5
# Less is no quotation where it stands in several passages: "see below" says nothing about the one that is meant.
WORDS_OF_A_QUOTE = 3
# What stands in more places than this is a phrase of the company, and no query tells which of them is meant.
_MOST_PLACES = 200
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Place:
    """A span of a document and the chunk that a query about it belongs to."""

    start: int
    end: int
    chunk: LivePassage


@dataclass(frozen=True, slots=True)
class Quoted:
    """Where a quote stands.

    Attributes:
        ambiguous: It stands in other passages, too, and the query does not tell which of them is meant.
    """

    doc_path: str
    start: int
    end: int
    ambiguous: bool = False


def span_key(doc_path: str, start: int, end: int) -> str:
    """The key in `curated_seen` of a span without a quote, whatever is asked about it."""
    return fingerprint(doc_path, start, end)


class Places:
    """The documents of today, searched for quotes; a document is prepared when it is first looked into."""

    def __init__(self, warehouse: Warehouse, passages: list[LivePassage]) -> None:
        self._passages = passages
        self._by_document: dict[str, list[LivePassage]] = {}
        for passage in passages:
            self._by_document.setdefault(passage.doc_path, []).append(passage)
        with warehouse.read() as connection:
            found = connection.execute("SELECT doc_path, text, sha256 FROM documents WHERE text IS NOT NULL").fetchall()
            unreadable = "SELECT doc_path FROM documents WHERE status = 'unreadable' AND text IS NULL"
            self._unreadable = {row[0] for row in connection.execute(unreadable).fetchall()}
            # A span holds for the document that it was first resolved in.
            self._seen = dict(connection.execute("SELECT curated_id, sha256 FROM curated_seen").fetchall())
        self._texts: dict[str, str] = {doc_path: text for doc_path, text, _ in found}
        self._sha256: dict[str, str] = {doc_path: sha256 for doc_path, _, sha256 in found}
        self._prepared: dict[str, QuotableText] = {}
        # An alignment takes long, and each line about a quote asks for it.
        self._spans: dict[tuple[str, str, int | None], tuple[int, int] | None] = {}
        self._alike_to: dict[str, list[Quoted]] = {}

    def document(self, written: str) -> str | None:
        """The readable document that a path in a file means; None: there is none."""
        return known_doc_path(written, self._texts)

    def gone(self, written: str) -> bool:
        """Whether no file of today has the path: it was renamed, or deleted."""
        return self.document(written) is None and known_doc_path(written, self._unreadable) is None

    def of_file(self, sha256: str) -> str | None:
        """The readable document with these bytes; None: there is none, or several."""
        found = [doc_path for doc_path, known in self._sha256.items() if known == sha256]
        return found[0] if len(found) == 1 else None

    def length(self, doc_path: str) -> int:
        """Characters of a readable document."""
        return len(self._texts[doc_path])

    def is_file(self, doc_path: str, sha256: str) -> bool:
        """Whether the bytes of a readable document are those with this hash."""
        return self._sha256[doc_path] == sha256

    def unchanged(self, curated_id: str, doc_path: str, start: int, end: int) -> bool:
        """Whether the document is the one in which the span was first resolved; a new span's is."""
        # Earlier versions kept it for each pair, so that another wording was a new span.
        today = self._sha256[doc_path]
        first = self._seen.setdefault(span_key(doc_path, start, end), self._seen.get(curated_id, today))
        return self._seen.get(curated_id, first) == today

    @property
    def seen(self) -> list[dict[str, str]]:
        """Rows of `curated_seen`: of each span that was asked about, the document it was first resolved in."""
        return [{"curated_id": curated_id, "sha256": sha256} for curated_id, sha256 in sorted(self._seen.items())]

    def verbatim(self, quote: str, query: str, doc_path: str | None = None, near: int | None = None) -> Quoted | None:
        """Where the quote stands word for word, typography aside, in a document or in any.

        Args:
            quote: of several places that is meant which the query is about.
            query: of the pair.
            doc_path: None: any document.
            near: where it stood in the document; that decides then, and not the query.
        """
        if doc_path is not None and near is not None:
            spans = self._text(doc_path).find_all(quote)
            return Quoted(doc_path, *min(spans, key=lambda span: abs(span[0] - near))) if spans else None
        places = self._word_for_word(quote, doc_path)
        return self._meant(places, query) if places else None

    def similar(self, quote: str, doc_path: str, near: int | None = None) -> Quoted | None:
        """What is most like the quote in a document, and like enough."""
        key = (doc_path, quote, near)
        if key not in self._spans:
            self._spans[key] = self._text(doc_path).find(quote, near)
        span = self._spans[key]
        return Quoted(doc_path, *span) if span else None

    def anywhere(self, quote: str, query: str) -> Quoted | None:
        """Where the quote stands in all documents, or what is most like it and like enough."""
        # Word for word in any document; only without that in those that share most words with it.
        return self.verbatim(quote, query) or next(iter(self._alike(quote)), None)

    def followed(self, quote: str, query: str) -> Quoted | None:
        """Where the quote of a document that is gone stands now; ambiguous, too, where several documents have what is like it."""
        if (found := self.verbatim(quote, query)) is not None:
            return found
        alike = self._alike(quote)
        return replace(alike[0], ambiguous=len(alike) > 1) if alike else None

    def negative(self, text: str, query: str, doc_path: str, chunk_id: str) -> Place | None:
        """Where a passage stands that does not answer the query; in the right chunk only if it stands nowhere else.

        Args:
            text: of that passage.
            query: of the pair.
            doc_path: of the pair; what it holds is preferred.
            chunk_id: of the pair: the right one.
        """
        there: list[Place] = []
        for searched in (doc_path, None):
            found = [(place, at) for place in self._word_for_word(text, searched) if (at := self.at(*place, query))]
            there += [at for _, at in found]
            if beside := [place for place, at in found if at.chunk.chunk_id != chunk_id]:
                meant = self._meant(beside, query)
                return self.at(meant.doc_path, meant.start, meant.end, query)
        # What is written of the right passage word for word is no other that resembles it.
        for quoted in () if there else self._alike_from(text, doc_path):
            at = self.at(quoted.doc_path, quoted.start, quoted.end, query)
            there += [at] if at else []
            if at and at.chunk.chunk_id != chunk_id:
                return at
        return there[0] if there else None

    def _word_for_word(self, quote: str, doc_path: str | None) -> list[tuple[str, int, int]]:
        # One place more than are looked at says that there are too many.
        most = _MOST_PLACES + 1
        paths = sorted(self._texts) if doc_path is None else [doc_path]
        found: list[tuple[str, int, int]] = []
        # What a reader sees first: only a piece that was cut within markup is looked for as it is written.
        for find in (QuotableText.find_shown, QuotableText.find_written):
            for path in paths if not found else ():
                if len(found) < most:
                    found += [(path, *span) for span in find(self._text(path), quote, most)]
        return found

    def _alike_from(self, text: str, doc_path: str) -> Iterator[Quoted]:
        """What is like a text: in the document first, then in all."""
        own = self.similar(text, doc_path)
        if own is not None:
            yield own
        yield from self._alike(text)

    def _alike(self, quote: str) -> list[Quoted]:
        """What is like the quote in the documents that share most words with it, the likest first."""
        from rapidfuzz import fuzz

        if quote not in self._alike_to:
            wanted = QuotableText.of(quote).folded.strip()
            found: list[tuple[float, str, int, int]] = []
            for doc_path in dict.fromkeys(passage.doc_path for passage in self._similar(quote)):
                if (span := self.similar(quote, doc_path)) is not None:
                    there = QuotableText.of(self._texts[doc_path][span.start : span.end]).folded
                    found.append((-fuzz.ratio(wanted, there), doc_path, span.start, span.end))
            self._alike_to[quote] = [Quoted(*place[1:]) for place in sorted(found)]
        return self._alike_to[quote]

    def _meant(self, places: list[tuple[str, int, int]], query: str) -> Quoted:
        """The first of the places whose passage and headings have most of the query's words."""
        if len(places) == 1:
            return Quoted(*places[0])
        shares: dict[str, float] = {}
        scored: list[tuple[float, str, tuple[str, int, int]]] = []
        for place in places[:_MOST_PLACES]:
            found = self.at(*place, query)
            if found is not None:
                chunk = found.chunk
                if chunk.chunk_id not in shares:
                    shares[chunk.chunk_id] = word_overlap(query, f"{chunk.headings()}\n{chunk.text}")
                scored.append((shares[chunk.chunk_id], chunk.near_duplicate_group, place))
        if not scored:
            return Quoted(*places[0])
        best = max(share for share, _, _ in scored)
        equal = [(group, place) for share, group, place in scored if share == best]
        ambiguous = len({group for group, _ in equal}) > 1 or len(places) > _MOST_PLACES
        return Quoted(*equal[0][1], ambiguous)

    def at(self, doc_path: str, start: int, end: int, query: str) -> Place | None:
        """The chunk of a span: the one that shares most with it.

        A span over several whole chunks (other programs cut larger pieces) says less than the query: of them, the
        chunk that holds most of the query's words.
        """
        chunks = self._by_document.get(doc_path, [])
        overlaps = [(min(end, c.end_char) - max(start, c.start_char), -c.start_char, c) for c in chunks]
        overlaps = [overlap for overlap in overlaps if overlap[0] > 0]
        if not overlaps:
            return None
        whole = [o for o in overlaps if 2 * o[0] >= o[2].end_char - o[2].start_char]
        if len(whole) > 1:
            asked = _words(query)
            best = max(whole, key=lambda o: (len(asked & _words(o[2].text)), *o[:2]))
        else:
            best = max(overlaps, key=lambda o: o[:2])
        return Place(start, end, best[2])

    def nearest(self, quote: str, doc_path: str | None) -> LivePassage | None:
        """The passage of the document, or of all of them, that is most like the quote."""
        from rapidfuzz import fuzz

        chunks = self._by_document.get(doc_path or "", []) or self._similar(quote)
        return max(chunks, key=lambda c: (fuzz.token_set_ratio(quote, c.text), c.chunk_id), default=None)

    def about(self, query: str, doc_path: str) -> LivePassage | None:
        """The passage of the document that shares most, and the rarest, words with the query; without any its first."""
        chunks = self._by_document.get(doc_path, [])
        return next(iter(self._similar(query, doc_path)), chunks[0] if chunks else None)

    def _text(self, doc_path: str) -> QuotableText:
        if doc_path not in self._prepared:
            self._prepared[doc_path] = QuotableText.of(self._texts[doc_path])
        return self._prepared[doc_path]

    def _similar(self, text: str, doc_path: str | None = None) -> list[LivePassage]:
        """The few passages, of the document or of all, that share most, and the rarest, words with the text."""
        scores: Counter[int] = Counter()
        for word in sorted(_words(text)):
            holders = self._holders.get(word, [])
            for position in holders:
                if doc_path is not None and self._passages[position].doc_path != doc_path:
                    continue
                scores[position] += math.log(1 + len(self._passages) / len(holders))  # type: ignore[assignment]
        best = sorted(scores, key=lambda position: (-scores[position], position))[:_CANDIDATES]
        return [self._passages[position] for position in best]

    @cached_property
    def _holders(self) -> dict[str, list[int]]:
        holders: dict[str, list[int]] = {}
        for position, passage in enumerate(self._passages):
            for word in _words(passage.text):
                holders.setdefault(word, []).append(position)
        return holders


def _words(text: str) -> set[str]:
    return set(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
