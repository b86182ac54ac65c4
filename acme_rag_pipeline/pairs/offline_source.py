"""A rendered passage, parsed: what the methods of the offline generator look at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

from acme_rag_pipeline.pairs.analyzer import ENGLISH_ANALYZER, Analyzer
from acme_rag_pipeline.pairs.corpus_statistics import heading_form, is_stock_phrase
from acme_rag_pipeline.pairs.plain_text import Block, blocks, normal_form, strip_markup
from acme_rag_pipeline.pairs.question_forms import without_gaps

_NUMBERING = re.compile(r"^\d{1,2}(?:\.\d{1,2})*[.)]?\s+(?=[^\W\d])")
# Two content words fit every passage: "The Monday copy".
_MIN_CLOZE_WORDS = 3
_POINTED_NUMBER = re.compile(r"^\d{1,2}(?:\.\d{1,3}){1,4}\.?\s+[\"“„«]?(?=([^\W\d_]))")
_BRACKETED_NUMBER = re.compile(r"^(?:\((?:\d{1,2}|[a-z]|[ivx]{1,5})\)|(?:\d{1,2}|[a-z]|[ivx]{1,5})\))\s+(?=\S)")
_LABEL = re.compile(
    r"^(?:(?:Q|A|Question|Answer|Frage|Antwort)[:.]|(?:F|P|R|Pregunta|Respuesta|Réponse|Domanda|Risposta|Vraag|Antwoord):)"
    r"\s+(?=\S)",
    re.IGNORECASE,
)


def unmarked(text: str) -> str:
    """A heading or sentence without its number and without "Q:", "Answer:", "Frage:"."""
    pointed = _POINTED_NUMBER.match(text)
    # "3.2 Either party" is a clause of a contract, "3.5 hours" an amount.
    if pointed and pointed[1].isupper():
        text = text.split(maxsplit=1)[1]
    return _LABEL.sub("", _BRACKETED_NUMBER.sub("", text))


def _plain_heading(heading: str) -> str:
    return _LABEL.sub("", _NUMBERING.sub("", strip_markup(heading)))


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
        return [sentence for block in self.blocks for sentence in self.sentences_of(block)][:400]

    def sentences_of(self, block: Block) -> list[str]:
        """Sentences of one block as a reader says them, without what counts or labels them."""
        return [plain for sentence in self.analyzer.sentences(block) if (plain := unmarked(sentence))]

    @cached_property
    def body_words(self) -> frozenset[str]:
        content_words = self.analyzer.content_words
        return frozenset(word for block in self.blocks if block.kind != "heading" for word in content_words(block.text))

    @cached_property
    def own_headings(self) -> frozenset[str]:
        """Normal forms of the headings that stand in the passage itself."""
        return frozenset(normal_form(_plain_heading(b.text)) for b in self.blocks if b.kind == "heading")

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
            plain = _plain_heading(heading)
            if plain and not generic:
                found.setdefault(normal_form(plain), plain)
        return [plain for form, plain in found.items() if form]

    @cached_property
    def section_headings(self) -> list[str]:
        """The specific headings without the title, outermost first."""
        title = normal_form(_plain_heading(self.title))
        return [heading for heading in self.specific_headings if normal_form(heading) != title]

    @cached_property
    def topic(self) -> str:
        """The innermost heading that says something."""
        return self.specific_headings[-1] if self.specific_headings else ""

    @cached_property
    def topics(self) -> list[str]:
        """The topic of each block: the passage's, up to where another section begins in it."""
        topic, found = self.topic, []
        headings = [(place, b.level) for place, b in enumerate(self.blocks) if b.kind == "heading"]
        own = [(place, level) for place, level in headings if _plain_heading(self.blocks[place].text) == topic]
        # Before its own heading those of the sections around it may stand.
        begin, level = own[0] if own else (-1, len(self.headings))
        for place, block in enumerate(self.blocks):
            if block.kind == "heading" and place > begin and block.level <= level:
                outermost = self.specific_headings[0] if self.specific_headings else ""
                topic = outermost if self._is_generic(block) else _plain_heading(block.text)
                level = block.level
            found.append(topic)
        return found

    @cached_property
    def _generic_forms(self) -> frozenset[str]:
        told = zip(self.headings, self.generic, strict=True)
        return frozenset(heading_form(heading) for heading, is_generic in told if is_generic)

    def _is_generic(self, block: Block) -> bool:
        return is_stock_phrase(block.text) or heading_form(block.text) in self._generic_forms

    @cached_property
    def numbered_acronyms(self) -> frozenset[str]:
        """Acronyms that only stand before a number, which is another name: "SOC 2", "ISO 27001"."""
        said = "\n".join((self.title, *self.headings, *(block.text for block in self.blocks)))
        numbered = {short: rf"(?<!\w){re.escape(short)}(?!\w)" for short in self.acronyms}
        return frozenset(
            short
            for short, name in numbered.items()
            if re.search(name, said) and not re.search(rf"{name}(?![ -]\d)", said)
        )

    @cached_property
    def keyphrases(self) -> list[str]:
        """Runs of up to three important words, those of the most important words first."""
        scored: dict[str, tuple[int, int]] = {}
        for block in self.blocks:
            # "Overview" and "FAQ" are no words of the passage; what only many documents share may be.
            if block.kind == "code" or (block.kind == "heading" and is_stock_phrase(block.text)):
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
            alone = re.compile(rf"(?<!\S){re.escape(acronym.lower())}(?= (?!\d))")
            if acronym not in self.numbered_acronyms and alone.search(lowered):
                return alone.sub(expansion.lower().replace("\\", r"\\"), lowered).strip()
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

    def is_telling(self, cloze: str) -> bool:
        """Whether what is left of a sentence still tells its passage from others."""
        return len(set(self.analyzer.content_words(cloze))) >= _MIN_CLOZE_WORDS

    def without_some_words(self, text: str, label: str) -> str:
        """`text` without 30 to 50 % of its content words, the least important rather than the most; three stay."""
        parts = self.analyzer.pieces(text)
        removable = [index for index, part in enumerate(parts) if self.analyzer.content_words(part)]
        share = 30 + self.draw(f"{label} share", 21)
        unranked = len(self.rank) + 1

        def importance(index: int) -> tuple[int, int]:
            best = min(self.rank.get(word.lower(), unranked) for word in self.analyzer.words(parts[index]))
            return -best, self.draw(f"{label} {index}", 97)

        order = sorted(removable, key=importance)
        most = max(0, len(removable) - _MIN_CLOZE_WORDS)
        dropped = set(order[: min(round(len(removable) * share / 100), most)])
        left = "".join(part for index, part in enumerate(parts) if index not in dropped).strip()
        return without_gaps(left) if self.analyzer.is_english else left
