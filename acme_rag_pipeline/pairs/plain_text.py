"""Words, sentences and blocks of Markdown-like text, without its markup.

Every pattern is linear in the length of the text (bounded or mutually exclusive repetitions): documents are data
from anywhere, and one hostile file must not stall a run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

# Own list, not scikit-learn's: an upgrade of a library must not change every rendered prompt.
_STOP_WORDS = """
a about above after again all also although always am an and another any anyone anything are aren't as at back be
because been before being below between both but by came can can't cannot come could did didn't do does doesn't
doing don't done down during e.g each either else etc even ever every few first for from further get gets getting
give given go goes going got had has hasn't have haven't having he her here hers him his how however i i'd i'll
i'm i've i.e if in instead into is isn't it it's its itself just keep kind know last least less let let's like
likely made make makes making many may maybe me might more most much must my need needed needs never new next no
nor not note now of off often on once one only onto or other others our ours out over own per please rather really
same see she should shouldn't since so some someone something soon still such sure take takes than that that's the
their them then there there's these they they'll they're they've thing things this those though through to too
toward two under until up upon us use used uses using usually very via want wants was way ways we we'll we're we've
well were what
when where whether which while who whom whose why will with within without won't would yes yet you you'd you'll
you're you've your yours yourself able
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

_WORD = re.compile(r"[^\W_]+(?:['’&./_+-][^\W_]+)*")
# Scripts written without spaces: two characters stand for a word, as in most CJK full-text analysers.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]{2}")
CODE_FROM = 0.5
# In prose, too: code that is spoken of, roles of reStructuredText, links, addresses, cells of a table, tags of a site's
# generator.
_NO_CODE = re.compile(
    r"``[^`]{1,300}``|(?::[\w:+.-]{1,60}:)?`[^`]{1,300}`_{0,2}|\[[^\[\]]{0,200}\]\([^()\s]{0,300}\)|\w+://\S+|^.*\|.*\|.*$"
    r"|\{[{%#][^{}]{0,300}[}%#]\}"
)
_CODE_LINE = re.compile(
    r"[{}]|[(={}].*;\s*$|\w\s?[!<>+-]?=\s?[\w\"'\[({]|</?[a-z]|\w\([^()\s]{0,60}\)[:,]?\s*$"
    r"|^\s*(?:>>>|\.\.\.|\$ |#!|@\w|[\])]|import |from \w+ import|def |class \w+[(:]|return )"
)
_LONGEST_CODE_LINE = 20
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_FENCE = re.compile(r"^\s{0,3}(?:```|~~~)")
_TABLE_RULE = re.compile(r"^[\s|:+=-]*-[\s|:+=-]*$")
_LIST_ITEM = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+")
_INLINE = (
    # "<b>Anchor</b>: the point", and below "Who uses `bin`?": no gap is left before the colon.
    (re.compile(r"(?<=[^\s<>])</[A-Za-z][^<>]{0,500}>(?=[,;:.?!](?:\s|$))"), ""),
    (re.compile(r"<!--[^>]{0,2000}-->|</?[A-Za-z!][^<>]{0,500}>"), " "),
    (re.compile(r"\{[%{][^{}]{0,300}[%}]\}"), " "),
    (re.compile(r"!?\[([^\[\]]{0,400})\]\((?:[^()\s]|\([^()\s]{0,200}\)){0,600}(?:\s[^()]{0,300})?\)"), r"\1"),
    (re.compile(r"!?\[([^\[\]]{1,400})\]\[[^\[\]]{0,200}\]"), r"\1"),
    (re.compile(r"(?:https?|ftp)://[^\s<>|`]{1,2000}|\bwww\.[^\s<>|`]{1,2000}"), " "),
    (re.compile(r"\\([^\w\s])"), r"\1"),
    (re.compile(r"(?<=[^\s*`~_\]}])[*`~_\]}]{1,20}(?=[,;:.?!](?:\s|$))"), ""),
    (re.compile(r"(?<![^\W_])_+|_+(?![^\W_])|(?<!\w)#+|[*`~|<>\[\]{}\\^=]+"), " "),
)
# What site generators and wikis add to Markdown, and what stays of it for a reader: first what spans lines.
_SITE_MARKUP = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"<!--(?:[^<]|<(?!!--)){0,4000}?-->|\{/\*(?:[^{]|\{(?!/\*)){0,4000}?\*/\}", " "),
        (r"\{%-?\s?comment\s?-?%\}(?:[^{]|\{(?!%-?\s?(?:end)?comment)){0,4000}?\{%-?\s?endcomment\s?-?%\}", " "),
        # `!!! note "Title"`, `=== "Tab"`, `:::tip Title`, `:::tip[Title]`, `> [!NOTE] Title`: the title is a line of its own.
        (
            r'^[ \t]*(?:!!!|\?\?\?\+?)[ \t]+[\w-]{1,40}(?:[ \t][\w-]{1,40}){0,3}(?:[ \t]+"([^"\n]{0,200})")?[ \t]*$',
            r"\n\1\n",
        ),
        (r'^[ \t]*===[!+]?[ \t]+"([^"\n]{0,200})"[ \t]*$', r"\n\1\n"),
        (
            r"^[ \t]*:{3,}[ \t]*(?:\{[^{}\n]{0,200}\}|[\w-]{1,40})?(?:\[([^\[\]\n]{0,200})\])?([^\n:{}\[\]]{0,200})$",
            r"\n\1\2\n",
        ),
        (r"^[ \t]*>[ \t]*\[!\w{1,20}\][+-]?([^\n]{0,200})$", r"\n>\1\n\n"),
        (r"\[\[_TOC_\]\]|^\[TOC\]$|^-{1,4}8<-{1,4}[^\n]{0,200}$", " "),
        # Marks of footnotes and comments in what was a Word or Google document, and of footnotes in Markdown.
        (r"\[(?:\[[^\[\]\n]{1,10}\]|↑)\]\([^()\s]{0,200}\)", " "),
        (r"^\[\^[^\[\]\s]{1,40}\]:", "\n"),
        (r"\[\^[^\[\]\s]{1,40}\]", ""),
        (r"!\[\[[^\[\]\n]{1,200}\]\]", " "),
        (r"\[\[(?:[^\[\]|\n]{1,200}\|)?([^\[\]|\n]{1,200})\]\]", r"\1"),
        (r"\{(?::[^{}\n]{1,200}|[ \t]?[.#][^{}\n]{0,200})\}", " "),
        (r"(?<![\w:]):[a-z][a-z0-9_+-]{1,60}:(?![\w:])", " "),
        (r"^([ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+)\[[ xX]\][ \t]+", r"\1"),
        # A bar in a cell begins no other one.
        (r"\\\|", "/"),
    )
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)]?\s+|(?<=[。！？])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|no|dr|mr|ms|mrs|approx|incl|u\.s|fig)|\b[A-Z])\.$", re.IGNORECASE)

BlockKind = Literal["prose", "item", "heading", "row", "code"]


@dataclass(frozen=True, slots=True)
class Block:
    """A run of text of one kind; a table row keeps its cells and its table's header, a heading its level."""

    kind: BlockKind
    text: str
    cells: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    level: int = 0


def words(text: str) -> list[str]:
    """Words of any script; apostrophes, hyphens and dots inside a word belong to it."""
    found: list[str] = []
    for word in _WORD.findall(text):
        found.extend(_UNSPACED.findall(word) or [word])
    return found


def is_content(word: str) -> bool:
    """Whether a lower-case word can carry a topic."""
    return len(word) > 1 and word.replace("’", "'") not in STOP_WORDS and not word.isnumeric()


def content_words(text: str) -> list[str]:
    """Lower-case words of `text` that can carry a topic, in order."""
    return [word for word in (found.lower() for found in words(text)) if is_content(word)]


def strip_markup(text: str) -> str:
    """One line of text as a reader sees it: no links, emphasis, tags, template calls, pipes or addresses."""
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    if "&" in text:
        # Entities may spell markup ("&lt;b&gt;"), so what they unfold to is stripped once more.
        text = _INLINE[-1][0].sub(" ", html.unescape(text))
    return " ".join(_CONTROL.sub(" ", text).split())


def without_site_markup(text: str) -> str:
    """A passage as its site shows it: no comments, attribute lists, emoji codes, footnote marks; links and notes by their titles."""
    for pattern, replacement in _SITE_MARKUP:
        text = pattern.sub(replacement, text)
    return text


def table_cells(line: str) -> tuple[str, ...]:
    """Cells of a Markdown table row."""
    return tuple(strip_markup(cell) for cell in line.strip().strip("|").split("|"))


def blocks(text: str) -> list[Block]:
    """Prose paragraphs, list items, headings, table rows and code of a Markdown-like text, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    in_code = _begins_in_code(lines)
    open_kind: BlockKind = "code" if in_code else "prose"
    open_lines: list[str] = []
    header: tuple[str, ...] = ()

    def close() -> None:
        if open_lines:
            plain = "\n".join(open_lines) if open_kind == "code" else strip_markup(" ".join(open_lines))
            if plain.strip():
                found.append(Block(open_kind, plain))
            open_lines.clear()

    for index, line in enumerate(lines):
        if _FENCE.match(line):
            close()
            in_code = not in_code
            open_kind = "code" if in_code else "prose"
            continue
        if in_code:
            open_lines.append(line)
            continue
        if line.count("|") >= 2 or (header and "|" in line):
            close()
            open_kind = "prose"
            cells = table_cells(line)
            if _TABLE_RULE.match(line):
                continue
            if index + 1 < len(lines) and "|" in lines[index + 1] and _TABLE_RULE.match(lines[index + 1]):
                header = cells
            elif any(cells):
                found.append(Block("row", " ".join(filter(None, cells)), cells, header))
            continue
        header = ()
        if not line.strip() or _TABLE_RULE.match(line):
            close()
            open_kind = "prose"
        elif _HEADING.match(line):
            close()
            text_of_it = _HEADING.sub("", line)
            level = line[: len(line) - len(text_of_it)].count("#")
            found.append(Block("heading", strip_markup(text_of_it), level=level))
            open_kind = "prose"
        elif match := _LIST_ITEM.match(line):
            close()
            open_kind = "item"
            open_lines.append(line[match.end() :])
        else:
            open_lines.append(line.lstrip(" \t>"))
    close()
    return [block for block in found if block.text]


def _begins_in_code(lines: Sequence[str]) -> bool:
    """Whether a passage begins inside of a block of code: of one that is longer than a passage."""
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    if not fences:
        if any(_HEADING.match(line) or _LIST_ITEM.match(line) for line in lines):
            return False
        # A page may be written with tags.
        plain = [_TAG.sub(" ", line) for line in lines]
        stanzas = [list(lines_) for said, lines_ in groupby(plain, lambda line: bool(line.strip())) if said]
        return sum(map(len, stanzas)) > 2 and all(code_share(stanza) >= CODE_FROM for stanza in stanzas)
    # A language stands behind the fence that opens a block.
    if any(_opens(lines[number]) for number in fences[::2]):
        return False
    if any(_opens(lines[number]) for number in fences[1::2]):
        return True
    if len(fences) % 2 == 0:
        return False
    before, after = lines[: fences[0]], lines[fences[0] + 1 : [*fences, len(lines)][1]]
    return code_share(before) > code_share(after)


def _opens(fence: str) -> bool:
    return bool(fence.strip().strip("`~"))


def code_share(lines: Sequence[str]) -> float:
    """The share of lines that look like a program or its output rather than like prose."""
    said = [line for line in lines if line.strip()]
    short = [line for line in said if len(line.split()) <= _LONGEST_CODE_LINE]
    return sum(bool(_CODE_LINE.search(_NO_CODE.sub("x", line[:1000]))) for line in short) / max(1, len(said))


def sentences(block: Block, end: re.Pattern[str] = _SENTENCE_END, no_end: re.Pattern[str] = _ABBREVIATION) -> list[str]:
    """Sentences of a prose block or list item; other kinds have none.

    Args:
        end: What stands between two sentences.
        no_end: What before it says that the sentence goes on.
    """
    if block.kind not in ("prose", "item"):
        return []
    found: list[str] = []
    for piece in end.split(block.text):
        piece = piece.strip()
        if found and no_end.search(found[-1][-12:]):
            found[-1] = f"{found[-1]} {piece}"
        elif piece:
            found.append(piece)
    return found


def normal_form(text: str) -> str:
    """Lower-case words of `text`: two texts with the same normal form read the same."""
    return " ".join(word.lower() for word in words(text))
