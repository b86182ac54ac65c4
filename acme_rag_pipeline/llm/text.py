"""Text on its way to an LLM and back: fenced as data, and cleaned of what could hide or reorder it."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Control, format, surrogate and private-use characters.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co"})
# Joiners are part of words in Persian, Hindi and of emoji; every other format character can hide or reorder text.
_JOINERS = frozenset("\u200c\u200d")
# As DeepSeek, Qwen and others write, Claude, Magistral, and gpt-oss on a server that does not read its channels.
_THINKING = ("<think>", "<thinking>", "[THINK]", "<|channel|>analysis")
_END_OF_THINKING = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final(?: [^<]*)?<\|message\|>")


def fenced(*parts: str) -> str:
    """The parts, unaltered, each between two lines that hold a mark which occurs in none of them.

    The mark is derived from the parts: the same parts are always fenced alike, and a text cannot hold a mark that
    depends on itself.
    """
    mark = fence_mark("\n".join(parts))
    return "\n".join([mark, *(line for part in parts for line in (part, mark))])


def fence_mark(data: str) -> str:
    """A mark that does not occur in `data`, the same for the same data."""
    folded = data.casefold()
    encoded = data.encode("utf-8", "surrogatepass")
    attempt = 0
    while True:
        token = hashlib.sha256(b"%d\0%b" % (attempt, encoded)).hexdigest()[:16]
        if token not in folded:
            return f"=====data-{token}====="
        attempt += 1


def clean_line(text: str) -> str:
    """`text` as one line that is inert where it is shown: NFC, no control or format characters."""
    return one_line(unicodedata.normalize("NFC", text))


def one_line(text: str) -> str:
    """`text` with every run of whitespace as one space, and without control and format characters."""
    spaced = "".join(
        " " if character.isspace() else character
        for character in text
        if character.isspace() or character in _JOINERS or unicodedata.category(character) not in _HIDDEN
    )
    return " ".join(spaced.split())


def clean_text(text: str) -> str:
    """`text` with clean lines; runs of blank lines become one."""
    lines = [clean_line(line) for line in text.splitlines()]
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept).strip()


def without_thinking(content: str) -> str:
    """What a model wrote after it thought aloud; nothing where it did not come to an end."""
    content = content.strip()
    if not content.startswith(_THINKING):
        return content
    ended = _END_OF_THINKING.search(content)
    return content[ended.end() :].strip() if ended else ""


def after_thinking(content: str) -> str:
    """What stands behind the last end of thinking; a chat template may have written its beginning, which is not here."""
    return content[max((ended.end() for ended in _END_OF_THINKING.finditer(content)), default=0) :]
