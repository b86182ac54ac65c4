"""reStructuredText and AsciiDoc written as the Markdown that the embedded generator reads.

What a reader of the built page does not see is left out: directives, targets, comments, attributes. Whatever is not known
stays as it is. The work is linear in the length of the text: the patterns look at one line and are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from acme_rag_pipeline.documents.headings import headings
from acme_rag_pipeline.pairs.plain_text import CODE_FROM, code_share

_Pattern = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

# Their block is code.
_CODE_DIRECTIVES = re.compile(
    r"code|code-block|sourcecode|parsed-literal|literal|test(?:code|setup|output)|doctest|productionlist|prompt|math|"
    r"graphviz|mermaid|uml"
)
# They and their block say nothing to a reader.
_SILENT_DIRECTIVES = re.compile(
    r"toctree|contents|include|literalinclude|image|figure|index|(?:py:)?(?:current)?module|highlight|raw|setting|role|"
    r"default-role|meta|sectnum|tabularcolumns|(?:section|code)author|rst-class|auto\w+"
)
_DIRECTIVE = re.compile(r"\.\.[ \t]+(?:\|[^|]{1,100}\|[ \t]+)?([A-Za-z][\w:+.-]{0,60})::(?:[ \t]+(.*))?")
_FOOTNOTE = re.compile(r"\.\.[ \t]+\[[^\[\]]{1,40}\][ \t]*")
_COMMENT = re.compile(r"(?:\.\.|__)(?:[ \t].*)?")
_OPTION = re.compile(r":[\w-]{1,40}:(?:[ \t].*)?")
_FIELD = re.compile(r"([ \t]*):([A-Za-z][\w -]{0,40}):[ \t]+(?=\S)")
_VERSION = re.compile(r"v?[\d.]+")

_LISTING = re.compile(r"\[(?:source|listing|,)[^\[\]]{0,200}\]")
_DELIMITER = re.compile(r"-{4,}|\.{4,}|\+{4,}|/{4,}")
_ATTRIBUTES = re.compile(r"\[(?:\[[^\[\]]{1,200}\]|[^\[\]]{1,200})\]")
_UNSEEN = re.compile(
    r"(?:image|include|video|audio|toc)::[^\[\]]{0,300}\[[^\[\]]{0,300}\]|[+]|={4,}|\*{4,}|_{4,}|--|//(?!/).*|:!?\w[\w -]{0,60}!?:(?:[ \t].*)?"
)
_ADMONITION = re.compile(r"(?:NOTE|TIP|IMPORTANT|WARNING|CAUTION):[ \t]+")
_BLOCK_TITLE = re.compile(r"\.(?=[^\W_])")

_RST_INLINE: tuple[_Pattern, ...] = (
    # :ref:`text <target>` and `text <target>`_ by their text, :class:`~module.Name` as Name, :ref:`a-label` in words.
    (re.compile(r"(?::[A-Za-z][\w:+.-]{0,60}:)?`([^`<>]{1,300}?)\s{1,20}<[^<>`]{1,300}>`_{0,2}"), r"\1"),
    (re.compile(r":[A-Za-z][\w:+.-]{0,60}:`[~@.!]{1,3}(?:[\w@]{1,100}\.){0,10}(\w{1,100}(?:\(\))?)`"), r"\1"),
    (
        re.compile(r":(?:std:)?(?:ref|doc|numref):`/?([^`<>]{1,300})`"),
        lambda found: re.sub(r"[-_/]+", " ", found[1]),
    ),
    (re.compile(r":[A-Za-z][\w:+.-]{0,60}:`([^`]{1,300})`"), r"\1"),
    (re.compile(r"`([^`]{1,300})`__?(?!\w)"), r"\1"),
)
_ASCIIDOC_INLINE: tuple[_Pattern, ...] = (
    (re.compile(r"\b(?:xref|link|mailto|https?):[^\s\[\]]{1,300}\[([^\[\]]{0,300})\]"), r"\1"),
    (re.compile(r"<<[^<>,\n]{1,200},[ \t]{0,8}([^<>\n]{1,200})>>"), r"\1"),
    (re.compile(r"<<([^<>,\n]{1,200})>>"), lambda found: re.sub(r"[-_/]+", " ", found[1])),
    (re.compile(r"\b(?:kbd|btn|menu|footnote|image|icon|pass|stem):[^\s\[\]]{0,300}\[([^\[\]]{0,300})\]"), r"\1"),
)


def as_markdown(text: str, format: str | None) -> str:
    """The text of a passage as Markdown, as far as the generator reads it.

    Args:
        format: of its document; any but 'rst' and 'asciidoc' leaves the text as it is.
    """
    if format not in ("rst", "asciidoc"):
        return text
    parts: list[str] = []
    cursor = 0
    for heading in headings(text, format):
        parts += [text[cursor : heading.start], f"\n{'#' * heading.level} {heading.title}\n"]
        cursor = heading.end
    lines = "".join([*parts, text[cursor:]]).splitlines()
    written = "\n".join(_without_directives(lines) if format == "rst" else _without_delimiters(lines))
    for pattern, replacement in _RST_INLINE if format == "rst" else _ASCIIDOC_INLINE:
        written = pattern.sub(replacement, written)
    return written


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _without_directives(lines: list[str]) -> Iterator[str]:
    number = _leading_code(lines)
    if number:
        yield from ("```", *lines[:number], "```", "")
    while number < len(lines):
        line = lines[number]
        number += 1
        depth, said = _indentation(line), line.strip()
        code, silent = False, False
        if directive := _DIRECTIVE.fullmatch(said):
            name, argument = directive[1].lower(), (directive[2] or "").strip()
            code = bool(_CODE_DIRECTIVES.fullmatch(name))
            silent = bool(_SILENT_DIRECTIVES.fullmatch(name))
            if not silent and not code and not _VERSION.fullmatch(argument):
                yield from ("", argument)
            while (
                number < len(lines) and _OPTION.fullmatch(lines[number].strip()) and _indentation(lines[number]) > depth
            ):
                number += 1
        elif footnote := _FOOTNOTE.match(said):
            yield said[footnote.end() :]
        elif _COMMENT.fullmatch(said):
            # A target has no block, and what is indented below it belongs to something else.
            silent = not said.startswith((".. _", "__"))
        else:
            code = said.endswith("::")
            yield line[: len(line.rstrip()) - 1] if code else _FIELD.sub(r"\1\2: ", line, count=1)
        if code or silent:
            end = _end_of_block(lines, number, depth)
            if code:
                yield from ("", "```", *lines[number:end], "```", "")
            number = end


def _leading_code(lines: list[str]) -> int:
    """How many lines at the beginning are code: the rest of a block that is longer than a passage."""
    end = 0
    if not lines or lines[0].lstrip().startswith(".."):
        return end
    while end < len(lines):
        following = next((n for n in range(end, len(lines)) if not lines[n].strip()), len(lines))
        # The passage's own first line stands without its indentation.
        indented = all(line[:1].isspace() for line in lines[max(1, end) : following])
        if not indented or code_share(lines[end:following]) < CODE_FROM:
            # A single line says too little.
            return end if sum(bool(line.strip()) for line in lines[:end]) > 1 else 0
        end = next((n for n in range(following, len(lines)) if lines[n].strip()), len(lines))
    return end


def _end_of_block(lines: list[str], number: int, depth: int) -> int:
    """The number of the first line that is no deeper than `depth`."""
    while number < len(lines) and (not lines[number].strip() or _indentation(lines[number]) > depth):
        number += 1
    return number


def _without_delimiters(lines: list[str]) -> Iterator[str]:
    fence = ""
    for line in lines:
        said = line.strip()
        if fence:
            if said == fence:
                fence = ""
                yield "```"
            else:
                yield line
        elif _DELIMITER.fullmatch(said):
            fence = said
            yield "```"
        elif _LISTING.fullmatch(said) or _ATTRIBUTES.fullmatch(said) or _UNSEEN.fullmatch(said):
            yield ""
        else:
            yield _BLOCK_TITLE.sub("", _ADMONITION.sub("", line, count=1), count=1) if said else line
    if fence:
        yield "```"
