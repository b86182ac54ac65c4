"""A rendered passage, parsed: what the methods of the offline generator look at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from acme_rag_pipeline.pairs.analyzer import ENGLISH_ANALYZER, Analyzer
from acme_rag_pipeline.pairs.plain_text import Block, blocks, normal_form, strip_markup
from acme_rag_pipeline.pairs.question_forms import without_gaps

_NUMBERING = re.compile(r"^\d{1,2}(?:\.\d{1,2})*[.)]?\s+(?=[^\W\d])")


@dataclass(frozen=True)
class Source:
    """A rendered passage, parsed: all that a method may look at."""

    seed: bytes
    text: str
    title: str
    headings: tuple[str, ...]
    generic: tuple[bool, ...]
    shares_section: bool
    terms: tuple[str, ...]
    acronyms: Mapping[str, str]
    associates: Mapping[str, str]
    analyzer: Analyzer = ENGLISH_ANALYZER
    long_section: bool = False

    def draw(self, label: str, options: int) -> int:
        """A number below `options`, fixed by the passage and the label: independent of what else was drawn."""
        digest = blake2b(label.encode("utf-8", "replace"), key=self.seed[:64], digest_size=8).digest()
        return int.from_bytes(digest, "big") % max(1, options)

    @cached_property
    def blocks(self) -> list[Block]:
        return blocks(self.text)

    @cached_property
    def sentences(self) -> list[str]:
        return [sentence for block in self.blocks for sentence in self.analyzer.sentences(block)][:400]

    @cached_property
    def body_words(self) -> frozenset[str]:
        content_words = self.analyzer.content_words
        return frozenset(word for block in self.blocks if block.kind != "heading" for word in content_words(block.text))

    @cached_property
    def own_headings(self) -> frozenset[str]:
        """Normal forms of the headings that stand in the passage itself."""
        return frozenset(normal_form(_NUMBERING.sub("", b.text)) for b in self.blocks if b.kind == "heading")

    @cached_property
    def rank(self) -> dict[str, int]:
        """Important words by how often the passage and its headings say them, then by appearance."""
        texts = [block.text for block in self.blocks if block.kind != "code"]
        texts += map(strip_markup, self.headings)
        counts = Counter(word for text in texts for word in self.analyzer.content_words(text))
        ranked = sorted(self.terms, key=lambda term: (-counts[term], self.terms.index(term)))
        return {term: position for position, term in enumerate(ranked)}

    def importance(self, text: str) -> int:
        """How many of the passage's important words `text` has."""
        return len(self.rank.keys() & self.analyzer.content_words(text))

    @cached_property
    def specific_headings(self) -> list[str]:
        """Headings that say something, outermost first, without repetitions and markup."""
        found: dict[str, str] = {}
        for heading, generic in zip((self.title, *self.headings), (False, *self.generic), strict=True):
            plain = _NUMBERING.sub("", strip_markup(heading))
            if plain and not generic:
                found.setdefault(normal_form(plain), plain)
        return [plain for form, plain in found.items() if form]

    @cached_property
    def topic(self) -> str:
        """The innermost heading that says something."""
        return self.specific_headings[-1] if self.specific_headings else ""

    @cached_property
    def keyphrases(self) -> list[str]:
        """Runs of up to three important words, those of the most important words first."""
        scored: dict[str, tuple[int, int]] = {}
        for block in self.blocks:
            if block.kind == "code":
                continue
            run: list[str] = []
            for word in (*self.analyzer.words(block.text), ""):
                # "8.2" alone says nothing.
                telling = word.lower() in self.rank and any(map(str.isalpha, word))
                if telling and len(run) < 3:
                    run.append(word)
                    continue
                if run:
                    phrase = " ".join({part.lower(): part for part in run}.values())
                    best = min(self.rank[part.lower()] for part in run)
                    scored.setdefault(phrase.lower(), (best, -len(run)))
                run = [word] if telling else []
        chosen: list[str] = []
        seen: set[str] = set()
        for phrase, _ in sorted(scored.items(), key=lambda item: (item[1], item[0])):
            if not seen & set(phrase.split()):
                chosen.append(phrase)
                seen.update(phrase.split())
        return chosen

    def swapped(self, phrase: str, label: str) -> str:
        """`phrase` with a word that readers may use instead: the other form of an acronym, or an associated term."""
        lowered = f" {phrase.lower()} "
        for acronym, expansion in self.acronyms.items():
            if f" {acronym.lower()} " in lowered:
                return lowered.replace(f" {acronym.lower()} ", f" {expansion.lower()} ").strip()
            if f" {expansion.lower()} " in lowered:
                short = lowered.replace(f" {expansion.lower()} ", f" {acronym} ").strip()
                # Of "design review board (DRB)" one form is left.
                return re.sub(rf"(?<!\S){re.escape(acronym)} \(?{re.escape(acronym.lower())}(?!\w)\)?", acronym, short)
        parts = phrase.split()
        places = [index for index, part in enumerate(parts) if part.lower() in self.associates]
        if not places:
            return phrase
        place = places[self.draw(f"{label} place", len(places))]
        parts[place] = self.associates[parts[place].lower()]
        return " ".join(dict.fromkeys(parts))

    def without_some_words(self, text: str, label: str) -> str:
        """`text` without 30 to 50 % of its content words, the least important rather than the most."""
        parts = self.analyzer.pieces(text)
        removable = [index for index, part in enumerate(parts) if self.analyzer.content_words(part)]
        share = 30 + self.draw(f"{label} share", 21)
        unranked = len(self.rank) + 1

        def importance(index: int) -> tuple[int, int]:
            best = min(self.rank.get(word.lower(), unranked) for word in self.analyzer.words(parts[index]))
            return -best, self.draw(f"{label} {index}", 97)

        order = sorted(removable, key=importance)
        dropped = set(order[: round(len(removable) * share / 100)])
        left = "".join(part for index, part in enumerate(parts) if index not in dropped).strip()
        return without_gaps(left) if self.analyzer.is_english else left
