"""What a document is called: by its front matter, its first heading, itself, or its file name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from acme_rag_pipeline.documents.characters import CONTROL
from acme_rag_pipeline.documents.headings import headings
from acme_rag_pipeline.documents.lines import front_matter_end

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

MAX_TITLE = 200
_LONGEST_HEADING = 1000
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,2}[ \t]+(\S.*)")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_NOT_PROSE = re.compile(r"\s*([>|=#:<]|[-*+]\s|[-=]{2,}|\d+[.)]\s)")
_INLINE_MARKUP = re.compile(r"[*_`\[\]<>&\\!]")
# `{#id .class}` of Pandoc and Hugo, `{ #id }` and `{: #id }` of attribute lists, `{/* #id */}` of MDX.
_HEADING_ANCHOR = re.compile(r"[ \t]?\{[ \t]*(?:[#.:]|/\*)[^{}]*\}[ \t]*$")
_FOOTNOTE_MARK = re.compile(r"\[\^[^\[\]\s]+\]")


def title_of(doc_path: str, text: str, kind: str, inner_title: str) -> str:
    """One line for people and for the context of a chunk; where a heading names the document, the title of its section.

    Args:
        doc_path: names the document where nothing else does.
        text: of the document.
        kind: its format, as in `Parsed`.
        inner_title: what the file says outside of its text.
    """
    found = ""
    if kind == "markdown":
        found = _one_line(_without_markup(_front_matter_title(text)))
    if not found and kind != "pdf":
        found = _one_line(_heading_title(text, kind))
    return found or _one_line(_without_markup(inner_title)) or title_of_file_name(doc_path)


def title_of_file_name(doc_path: str) -> str:
    """What a document is called where nothing else names it."""
    return _one_line(_without_markup(_from_file_name(doc_path)))


def plain_title(source: str) -> str:
    """Return the text of a Markdown heading without inline markup, footnote marks and a trailing `{#anchor}`."""
    # A run of spaces would take the pattern long.
    source = _FOOTNOTE_MARK.sub("", _HEADING_ANCHOR.sub("", " ".join(source.split())))
    if not _INLINE_MARKUP.search(source):
        return " ".join(source.split())
    tokens = _inline_parser().parseInline(source)[0].children or []
    return " ".join("".join(_inline_text(tokens)).split())


@lru_cache(maxsize=1)
def _inline_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark")


def _inline_text(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type in ("softbreak", "hardbreak"):
            yield " "
        elif token.type == "image":
            yield from _inline_text(token.children or [])
        elif token.type != "html_inline":
            yield token.content


def _front_matter_title(text: str) -> str:
    title = r"^title(?::|[ \t]*=)[ \t]*([^\r\n]*)"
    found = re.search(title, text[: front_matter_end(text)], re.MULTILINE | re.IGNORECASE)
    if not found or found[1].strip()[:1] in ("|", ">"):
        return ""
    value = found[1].strip()
    quoted = re.match(r"""(["'])(.*)\1""", value)
    return quoted[2] if quoted else re.sub(r"(^|\s)#.*", "", value)


def _heading_title(text: str, kind: str) -> str:
    if kind in ("rst", "asciidoc"):
        return next((_without_markup(heading.title) for heading in headings(text, kind)), "")
    plain = _plain_guess if kind == "text" else plain_title
    fence, before = "", ""
    for line in (
        line[:_LONGEST_HEADING]
        for line in text[front_matter_end(text) if kind == "markdown" else 0 :].removeprefix("\ufeff").splitlines()
    ):
        mark = _FENCE.match(line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif (source := _heading_source(before, line)) and (title := plain(source)):
            return title
        before = line
    return ""


def _heading_source(before: str, line: str) -> str:
    if heading := _HEADING.fullmatch(line):
        return re.sub(r"(?:^|[ \t]+)#+[ \t]*$", "", heading[1].rstrip())
    return before if _UNDERLINE.fullmatch(line) and not _NOT_PROSE.match(before) else ""


def _plain_guess(heading: str) -> str:
    # In plain text, where a heading is a guess and opens no section, a backslash is a backslash.
    return _without_markup(_FOOTNOTE_MARK.sub("", _HEADING_ANCHOR.sub("", heading)))


def _without_markup(title: str) -> str:
    plain = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", title[:_LONGEST_HEADING])
    return re.sub(r"(\*\*|__|`)", "", plain)


def _one_line(title: str) -> str:
    return " ".join(CONTROL.sub("", title[:_LONGEST_HEADING]).split())[:MAX_TITLE].strip()


def _from_file_name(doc_path: str) -> str:
    words = re.sub(r"[-_\s]+", " ", PurePosixPath(doc_path).stem).strip()
    return words[:1].upper() + words[1:] or doc_path
