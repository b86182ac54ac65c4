"""The headings of reStructuredText and AsciiDoc, by their lines: the text stays the file, character for character.

Only what makes a line a heading is read, by the rules of the two formats (docutils.sourceforge.io/docs/ref/rst/
restructuredtext.html#sections, docs.asciidoctor.org/asciidoc/latest/sections/titles-and-levels). A parser of the whole
format would stop at the first directive of Sphinx or Antora that it does not know, and tells no positions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

DEEPEST_LEVEL = 6
LONGEST_TITLE = 500  # characters; what is longer is no title, and would take the patterns long
_LINE_BREAK = re.compile(r"\r\n|\r|\n")

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*")
_NO_TITLE = re.compile(r"[-*+•‣⁃]\s|\.\.(?:\s|$)|__\s|\|\s|>>>\s|:[^:\s][^:]*:\s")
_SHORTEST_LOOSE_ADORNMENT = 4  # a shorter line must be as long as its title
# It names the heading below it.
_TARGET = re.compile(r"\.\. (?:_(?:`[^`]*`|[^:]+):|(?:index|setting|(?:py:)?module)::.*)")
_ROLE = re.compile(r":[A-Za-z][\w.:+-]*:(?=`)")
_BACKQUOTED = re.compile(r"`+([^`]+?)(?:\s*<[^<>`]*>)?`+_{0,2}")

_ATX = re.compile(r"(={1,6}|#{1,6})[ \t]+(\S.*)")
_UNDERLINE_LEVELS = {"=": 1, "-": 2, "~": 3, "^": 4, "+": 5}
_UNDERLINE = re.compile(r"([=~^+-])\1+")
_VERBATIM = re.compile(r"(?:-{4,}|\.{4,}|\+{4,}|/{4,}|```\S*)")
_BLOCK_ATTRIBUTES = re.compile(r"\[.*\]")
_ANCHOR = re.compile(r"\[\[[^\[\]]*\]\]|\[#[^\[\]]*\]")
_ATTRIBUTE = re.compile(r"^:(\w[\w-]{0,60}):[ \t]+(\S.*)$", re.MULTILINE)
_REFERENCE = re.compile(r"\{(\w[\w-]{0,60})\}")
_SECTION_MARKS = re.compile(r"[ \t]+(?:=+|#+)$")
_MACRO = re.compile(r"(?:xref|link|https?|mailto):[^\s\[\]]*\[([^\[\]]*)\]|<<[^<>,]*,?[ \t]*([^<>]*)>>")
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,2}|_{1,2})(\S|\S.*?\S)\1(?!\w)")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading with its adornment, and with the targets or attributes above it.

    Attributes:
        start: First character (index into the text).
        end: One past its last line.
        level: 1 for the outermost, at most 6.
        title: Its text without markup, on one line.
    """

    start: int
    end: int
    level: int
    title: str


def headings(text: str, format: str) -> list[Heading]:
    """The headings of a text, in order; none where its format is neither 'rst' nor 'asciidoc'."""
    if format == "rst":
        return rst_headings(text)
    return asciidoc_headings(text) if format == "asciidoc" else []


def rst_headings(text: str) -> list[Heading]:
    """Headings of reStructuredText: a line of text with a line of punctuation below it, or one above and one below.

    The styles get their levels in the order in which they come. Headings inside of directives and quotes, which are
    indented, are none.
    """
    lines = _lines(text)
    styles: list[tuple[str, bool]] = []
    found: list[Heading] = []
    number = 0
    while number < len(lines):
        above = _ADORNMENT.fullmatch(lines[number].text)
        overlined = bool(above) and _is_title(lines, number + 1, number, overlined=True)
        title = number + overlined
        if not overlined and not _is_title(lines, number, number - 1, overlined=False):
            number += 1
            continue
        style = (lines[title + 1].text[0], overlined)
        if style not in styles:
            styles.append(style)
        level = min(styles.index(style) + 1, DEEPEST_LEVEL)
        if plain := _plain_rst(lines[title].text):
            found.append(Heading(_start(lines, number, _TARGET), lines[title + 1].end, level, plain))
        number = title + 2
    return found


def asciidoc_headings(text: str) -> list[Heading]:
    """Headings of AsciiDoc: after one to six `=` (or `#`), or with a line below that is about as long as the title.

    References to attributes that the text itself sets are filled in.
    """
    lines = _lines(text)
    attributes = {name: value[:LONGEST_TITLE] for name, value in _ATTRIBUTE.findall(text)}

    def plain(title: str) -> str:
        filled = _REFERENCE.sub(lambda found: attributes.get(found[1], found[0]), title)
        return _plain_asciidoc(filled[:LONGEST_TITLE])

    found: list[Heading] = []
    fence = ""
    number = 0
    while number < len(lines):
        line = lines[number].text
        number += 1
        if fence:
            fence = "" if line == fence else fence
        elif len(line) <= LONGEST_TITLE and (heading := _ATX.fullmatch(line)):
            if title := plain(_SECTION_MARKS.sub("", heading[2])):
                start = _start(lines, number - 1, _BLOCK_ATTRIBUTES)
                found.append(Heading(start, lines[number - 1].end, len(heading[1]), title))
        elif _is_underlined(lines, number - 1):
            if title := plain(line):
                start = _start(lines, number - 1, _BLOCK_ATTRIBUTES)
                found.append(Heading(start, lines[number].end, _UNDERLINE_LEVELS[lines[number].text[0]], title))
            number += 1
        elif _VERBATIM.fullmatch(line):
            fence = "```" if line.startswith("```") else line
    return found


@dataclass(frozen=True, slots=True)
class _Line:
    start: int
    end: int
    text: str  # without the white space at its end


def _lines(text: str) -> Sequence[_Line]:
    bom = 1 if text.startswith("\ufeff") else 0
    starts = [bom, *(found.end() for found in _LINE_BREAK.finditer(text)), len(text)]
    return [_Line(start, end, text[start:end].rstrip()) for start, end in pairwise(starts) if start < end]


def _start(lines: Sequence[_Line], number: int, above: re.Pattern[str]) -> int:
    first = number
    before = number - 1
    while before >= 0 and (not lines[before].text or above.fullmatch(lines[before].text)):
        if lines[before].text:
            first = before
        before -= 1
    return lines[first].start


def _is_title(lines: Sequence[_Line], number: int, before: int, *, overlined: bool) -> bool:
    """Whether the line is a title with the next one below it; `before` is the line above, or its own one above."""
    if number + 1 >= len(lines):
        return False
    title, below = lines[number].text, lines[number + 1].text
    adornment = _ADORNMENT.fullmatch(below)
    if not title.strip() or len(title) > LONGEST_TITLE or not adornment:
        return False
    if overlined:
        if lines[before].text != below or (before > 0 and not _ends_block(lines[before - 1].text)):
            return False
    elif title[0].isspace() or _NO_TITLE.match(title) or (before >= 0 and not _ends_block(lines[before].text)):
        return False
    wide = _width(title) > len(below)
    # A line of punctuation between two others is one of them, no title.
    return (not wide or len(below) >= _SHORTEST_LOOSE_ADORNMENT) and not _ADORNMENT.fullmatch(title.strip())


def _ends_block(line: str) -> bool:
    # Of the comments and targets directly above a title only the first line is known.
    return not line or line.startswith((".. ", "__ "))


def _width(title: str) -> int:
    """Columns that the title takes in a terminal: East Asian letters two, combining marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in title.strip()
    )


def _plain_rst(title: str) -> str:
    title = _BACKQUOTED.sub(r"\1", _ROLE.sub("", title))
    title = re.sub(r"\|([^|\s][^|]*)\|", r"\1", title)
    return _without_emphasis(re.sub(r"\\(.)", lambda found: found[1].strip(), title))


def _is_underlined(lines: Sequence[_Line], number: int) -> bool:
    if number + 1 >= len(lines):
        return False
    title, below = lines[number].text, lines[number + 1].text
    before = lines[number - 1].text if number else ""
    return bool(
        len(title) <= LONGEST_TITLE
        and _UNDERLINE.fullmatch(below)
        and re.match(r"[^\W_]", title)
        and abs(_width(title) - len(below)) <= 1
        and (not before or _BLOCK_ATTRIBUTES.fullmatch(before))
    )


def _plain_asciidoc(title: str) -> str:
    title = _MACRO.sub(lambda found: found[1] or found[2] or "", _ANCHOR.sub("", title))
    return _without_emphasis(title.replace("`", ""))


def _without_emphasis(title: str) -> str:
    return " ".join(_EMPHASIS.sub(r"\2", title).split())
