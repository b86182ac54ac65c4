"""Where the lines of a text begin, and where a Markdown document begins after its front matter."""

from __future__ import annotations

import re

_LINE_BREAK = re.compile(r"\r\n|\r|\n")  # CommonMark's line endings, and no others (not \f, \x85, \u2028)
_FRONT_MATTER_KEY = re.compile(r"""[\w"'][^:\r\n]*:(?:[ \t]|$)""")
# A line of prose, which no YAML mapping has: several words at the margin without a colon, or five before one.
_PROSE = re.compile(r"(?![ \t\]})#]|-[ \t])(?:[^\s:]+[ \t]+){4}[^\s:]|(?![ \t\]})#]|-[ \t])[^\s:]+[ \t]+[^:]*$")
_TOML_LINE = re.compile(r"""[\w"'.-]+[ \t]*=|\[""")
_MDX_IMPORTS = re.compile(
    r"""(?:\s*import\s(?:[^'";]{1,1000}\sfrom\s+)?['"][^'"\r\n]{1,300}['"];?[ \t]*(?:[\r\n]|\Z))+"""
)


def line_starts(text: str, start: int, end: int) -> list[int]:
    """Return the index of the first character of each line of `text[start:end]`, by CommonMark's line endings."""
    return [start, *(match.end() for match in _LINE_BREAK.finditer(text, start, end))]


def front_matter_end(text: str) -> int:
    """Return where the document begins after its front matter and the imports of MDX, or 0 where there are none.

    Front matter is a first line `---`, a YAML mapping, and a line `---` or `...`; or TOML between two lines `+++`. A rule
    at the top of a document with prose before the next one, though it may begin as a mapping does, is no front matter.
    """
    end = _matter_end(text)
    imports = _MDX_IMPORTS.match(text, end)
    return imports.end() if imports else end


def _matter_end(text: str) -> int:
    bom = 1 if text.startswith("\ufeff") else 0
    starts = line_starts(text, bom, len(text))
    lines = [text[a:b].rstrip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    if len(lines) < 2 or lines[0] not in ("---", "+++"):
        return 0
    yaml = lines[0] == "---"
    key, closing = (_FRONT_MATTER_KEY, ("---", "...")) if yaml else (_TOML_LINE, ("+++",))
    for number, line in enumerate(lines[1:], start=1):
        if line in closing:
            body = [entry for entry in lines[1:number] if entry and not entry.startswith("#")]
            is_mapping = not body or key.match(body[0])
            return (starts[number + 1] if number + 1 < len(starts) else len(text)) if is_mapping else 0
        if yaml and _PROSE.match(line):
            return 0
    return 0
