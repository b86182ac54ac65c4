"""Finding a quoted piece of text again after the document around it, or its typography, has changed."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

# Below this share of matching characters a quote counts as gone; one changed number in a sentence stays above it.
FUZZY_SCORE = 88.0
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
     "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "\u00ad": "", "*": "", "_": "", "`": "", "\\": ""}
)  # fmt: skip


@dataclass(frozen=True)
class QuotableText:
    """A document's text prepared for finding quotes: folded, with the way back to the original offsets."""

    text: str
    folded: str
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> QuotableText:
        """Fold case, typography, Markdown emphasis and whitespace."""
        characters: list[str] = []
        offsets: list[int] = []
        for position, original in enumerate(text):
            for character in unicodedata.normalize("NFKC", original).translate(_TYPOGRAPHY).casefold():
                space = character.isspace()
                if space and (not characters or characters[-1] == " "):
                    continue
                characters.append(" " if space else character)
                offsets.append(position)
        return cls(text, "".join(characters), tuple(offsets))

    def find(self, quote: str, near: int | None = None) -> tuple[int, int] | None:
        """Span of the quote in the original text, or None.

        Args:
            quote: a piece of the document, perhaps with other typography, line breaks or small edits.
            near: where it stood before; decides between several equal places.
        """
        wanted = QuotableText.of(quote).folded.strip()
        if not wanted:
            return None
        places = []
        at = self.folded.find(wanted)
        while at != -1:
            places.append(at)
            at = self.folded.find(wanted, at + 1)
        if places:
            best = places[0] if near is None else min(places, key=lambda p: abs(self.offsets[p] - near))
            return self.offsets[best], self.offsets[best + len(wanted) - 1] + 1
        return self._find_similar(wanted)

    def _find_similar(self, wanted: str) -> tuple[int, int] | None:
        from rapidfuzz import fuzz

        if len(wanted) < 20 or len(wanted) > len(self.folded) * 1.1:
            return None
        match = fuzz.partial_ratio_alignment(wanted, self.folded, score_cutoff=FUZZY_SCORE)
        if match is None or match.dest_end <= match.dest_start:
            return None
        return self.offsets[match.dest_start], self.offsets[match.dest_end - 1] + 1
