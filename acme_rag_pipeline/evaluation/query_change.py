"""A query whose score changed, and why: at which ranks its evidence was found before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RANKS_SHOWN = 4


@dataclass(frozen=True)
class Passage:
    """What an arm found for a query; ``rank`` counts from 1, ``relevant`` says whether it finds the evidence."""

    doc_path: str
    heading: str
    snippet: str
    rank: int | None = None
    relevant: bool = False


@dataclass(frozen=True)
class FoundEvidence:
    """A piece of evidence, and the rank from 1 at which each arm found it; None: not among its hits.

    Attributes:
        doc_path: of its document.
        quote: its text; empty where the whole document is the evidence.
        before: rank with the reference.
        after: rank with the candidate.
        base: rank with the base model.
    """

    doc_path: str
    quote: str = ""
    before: int | None = None
    after: int | None = None
    base: int | None = None


@dataclass(frozen=True)
class QueryChange:
    """A query with nDCG@10 of the reference ("before") and of the candidate ("after"), and what each found.

    Attributes:
        before: what the reference found first.
        after: what the candidate found first.
        same_first: these are one passage.
        evidence: all pieces, with their ranks.
        base_score: nDCG@10 of the base model, where it is neither of the two; else None.
        depth: hits that were looked at.
    """

    query_id: str
    query: str
    before_score: float
    after_score: float
    before: Passage | None = None
    after: Passage | None = None
    same_first: bool = False
    evidence: Sequence[FoundEvidence] = ()
    base_score: float | None = None
    depth: int = 20

    @property
    def gain(self) -> float:
        """Change of nDCG@10, positive when the candidate is better."""
        return self.after_score - self.before_score

    @property
    def moved(self) -> str:
        """Where the evidence was found before and after, in words: why the score changed; empty without evidence."""
        return self.moved_of(*self.evidence)

    def moved_of(self, *pieces: FoundEvidence) -> str:
        """The same of some pieces: `at rank 6 → 3`."""
        was, now = (self.place_of(which, *pieces) for which in ("before", "after"))
        if not was:
            return ""
        now = now.removeprefix("at ")
        return f"{was} → {now.removeprefix('rank ') if was.startswith('at rank ') else now}"

    def place_of(self, which: str, *pieces: FoundEvidence) -> str:
        """At which ranks ``before``, ``after`` or ``base`` found these pieces (default all): `not among the first 20`."""
        pieces = pieces or tuple(self.evidence)
        if not pieces:
            return ""
        found = sorted({rank for piece in pieces if (rank := getattr(piece, which)) is not None})
        if not found:
            return f"not among the first {self.depth}"
        more = " …" if len(found) > RANKS_SHOWN else ""
        return f"at {'ranks' if len(found) > 1 else 'rank'} {', '.join(map(str, found[:RANKS_SHOWN]))}{more}"
