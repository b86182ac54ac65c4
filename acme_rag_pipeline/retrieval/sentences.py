"""The sentences of a passage, and what the best of them says about a query.

One vector for a passage is a mean over everything in it; a question often asks for one sentence. A passage scored by its own
cosine and by that of its best sentence is found more often (docs/evaluation.md), like in late interaction (ColBERT, Khattab
and Zaharia 2020, arXiv:2004.12832) with a sentence in the place of a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

# Raised when the code from here on cuts a text into other sentences.
SENTENCES_VERSION = "2"
# Characters; what is shorter says little alone and is joined with what follows it.
SHORTEST = 40
# A passage of nothing but short lines is not worth more vectors than that.
MOST = 64
# A line of so many characters was broken by its writer's editor, and goes on in the next one.
WRAPPED = 50
# Passages whose sentence vectors are in memory at a time, 10 MB for 1,000 of seven sentences.
PASSAGES_AT_A_TIME = 1_000
_END = re.compile(r"(?<=[.!?])\s+(?=[\"'“‘(\[]?[^\W\d_a-zß-öø-ÿа-я])|(?<=[。！？])")
_WORD = re.compile(r"\w")
_FENCE = re.compile(r"\s*(?:```|~~~)")
# A list item, a table row, a heading, a quote, a directive or a field goes on with no line above it.
_BEGINS = re.compile(r"\s*(?:[-*+•|#>]|\d{1,3}[.)]\s|\.\. |:\w)")
_HOLDS_ONE_LINE = re.compile(r"\s*[|#]")


def sentences(text: str) -> list[str]:
    """The sentences of a passage in order: each line (paragraph, list item, table row) cut where a sentence ends.

    Lines of a paragraph that was wrapped are one.

    Args:
        text: of the passage, markup and all.

    Returns:
        At least one and at most `MOST`; the text itself where nothing can be cut.
    """
    found: list[str] = []
    begun = ""
    for line in _unwrapped(text.splitlines()):
        if not _WORD.search(line):
            continue
        for piece in _END.split(line.strip()):
            begun = f"{begun} {piece}".strip()
            if len(begun) >= SHORTEST:
                found.append(begun)
                begun = ""
    if begun and found:
        found[-1] = f"{found[-1]} {begun}"
    elif begun:
        found.append(begun)
    if len(found) > MOST:
        found = [*found[: MOST - 1], " ".join(found[MOST - 1 :])]
    return found or [text]


def _unwrapped(lines: Sequence[str]) -> list[str]:
    found: list[str] = []
    before, code = "", False
    for line in lines:
        fence = bool(_FENCE.match(line))
        code ^= fence
        wrapped = len(before.strip()) >= WRAPPED and not _HOLDS_ONE_LINE.match(before)
        goes_on = line.strip()
        # What begins with a capital may be the next row of a table in a PDF, or of an address.
        if wrapped and goes_on and not (code or fence or goes_on[0].isupper() or _BEGINS.match(line)):
            found[-1] = f"{found[-1]} {goes_on}"
        else:
            found.append(line)
        before = "" if fence else line
    return found


def packed_sentences(
    texts: Sequence[str], vectors_of: Callable[[Sequence[str]], tuple[np.ndarray, int]]
) -> tuple[list[bytes], int]:
    """The sentence vectors of passages as they lie in a table.

    Args:
        texts: of the passages.
        vectors_of: sentences to (unit vectors, how many had to be encoded).

    Returns:
        A `pack` of each passage, and how many sentences had to be encoded.
    """
    packs: list[bytes] = []
    encoded = 0
    for first in range(0, len(texts), PASSAGES_AT_A_TIME):
        of_text = [sentences(text) for text in texts[first : first + PASSAGES_AT_A_TIME]]
        flat = [sentence for found in of_text for sentence in found]
        vectors, new = vectors_of(flat)
        encoded += new
        ends = np.cumsum([len(found) for found in of_text])
        packs += [pack(rows) for rows in np.split(vectors, ends[:-1])]
    return packs, encoded


def pack(vectors: np.ndarray) -> bytes:
    """Vectors, shape (sentences, dimension), as half-precision bytes: half the size, cosines right to three digits.

    Bytes and not a list of vectors: a second column of vectors would make readers name the one that they mean.
    """
    return np.ascontiguousarray(vectors, dtype="<f2").tobytes()


def unpacked(packed: bytes, dimension: int) -> np.ndarray:
    """What `pack` packed, as float32."""
    return np.frombuffer(packed, dtype="<f2").reshape(-1, dimension).astype(np.float32)


def best_sentence(query: np.ndarray, packed: bytes | None) -> float | None:
    """The highest cosine of a query's unit vector with a sentence of the passage; None where the table holds none."""
    return float((unpacked(packed, len(query)) @ query).max()) if packed else None


def with_best_sentence(cosine: float, sentence: float | None, weight: float) -> float:
    """The dense score of a passage: its own cosine, and `weight` of its best sentence's."""
    return cosine if sentence is None else (1 - weight) * cosine + weight * sentence
