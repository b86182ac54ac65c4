"""The text layer of a PDF as paragraphs."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import unicodedata

from acme_rag_pipeline.documents.characters import CONTROL, SURROGATE
from acme_rag_pipeline.documents.unreadable import MISSING_PACKAGE, Unreadable

_LIGATURE = re.compile("[\ufb00-\ufb06]")
_LIST_ITEM = re.compile(r"([-*•‣◦▪–●○]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_SENTENCE_END = re.compile(r"[.!?:;…][\"'”’)\]]*$")


def pdf_to_text(data: bytes) -> tuple[str, str]:
    try:
        import pypdf
    except ImportError as error:
        raise Unreadable(f"reading PDF files needs pypdf; {MISSING_PACKAGE}[pdf]") from error
    # It warns about every oddity of a file that it can read nevertheless; what it cannot read raises.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)
    reader = pypdf.PdfReader(io.BytesIO(data))
    unlocked = not reader.is_encrypted
    # A PDF that only restricts printing opens with the empty password; an unknown or AES scheme may raise.
    with contextlib.suppress(Exception):
        unlocked = unlocked or bool(reader.decrypt(""))
    if not unlocked:
        raise Unreadable("the PDF is encrypted; save a copy without a password")
    pages = [page.extract_text() for page in reader.pages]
    text = _LIGATURE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), "\f".join(pages))
    text = CONTROL.sub("", SURROGATE.sub("\ufffd", text))
    if not any(character.isalnum() for character in text):
        raise Unreadable("the PDF has no text layer (scanned?); run text recognition (OCR) on it")
    lines = [line for number, page in enumerate(text.split("\f"), 1) for line in _page_lines(page, number)]
    title = next((line for line in lines if len(line) <= 100 and any(c.isalnum() for c in line)), "")
    return _paragraphs(lines), title


def _page_lines(page: str, number: int) -> list[str]:
    lines = [re.sub(r"[ \t\xa0]+", " ", line).strip() for line in page.splitlines()]
    filled = [at for at, line in enumerate(lines) if line]
    for at in {*filled[:1], *filled[-1:]}:
        if re.fullmatch(rf"(?:page )?[-–]? ?{number} ?[-–]?(?: ?(?:of|/) ?\d+)?", lines[at], re.IGNORECASE):
            lines[at] = ""
    # Without empty lines at its ends, a paragraph goes on across the page break.
    return "\n".join(lines).strip("\n").split("\n")


def _paragraphs(lines: list[str]) -> str:
    """Join wrapped lines. Prose is set apart by blank lines; short lines, such as table rows, stay together."""
    lengths = sorted(len(line) for line in lines if len(line) >= 40)
    width = lengths[int(len(lengths) * 0.8)] if lengths else 80
    whole = "\n".join(lines)
    blocks: list[list[str]] = []
    for line in lines:
        if line and blocks and blocks[-1][-1] and _wraps(blocks[-1][-1], line, width):
            blocks[-1].append(line)
        else:
            blocks.append([line])
    text, prose_before = "", False
    for block in blocks:
        joined = _joined(block, whole)
        ends = len(block) > 1 or (len(joined) > width // 2 and bool(_SENTENCE_END.search(joined)))
        prose = ends and not _LIST_ITEM.match(joined)
        text += ("\n" if prose or prose_before else "") + joined + "\n"
        prose_before = prose
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _wraps(line: str, following: str, width: int) -> bool:
    """Whether the line was broken only because the first word of the following one had no room left."""
    # A line much wider than the prose around it is a table row in small print.
    if _SENTENCE_END.search(line) or _LIST_ITEM.match(following) or max(len(line), len(following)) > width * 1.2:
        return False
    if line.endswith(("-", "\u00ad")) and following[0].islower() and len(line) > width // 2:
        return True
    filled = len(line) + 1 + len(following.split(" ", 1)[0])
    return filled >= width * (0.85 if following[0].islower() else 0.95)


def _joined(lines: list[str], whole: str) -> str:
    text = ""
    for line in lines:
        head, tail = re.search(r"[^\W\d_]+-$", text[-60:]), re.match(r"[^\W\d_]+", line)
        if text.endswith("\u00ad"):
            text = text[:-1] + line
        elif head and tail and line[0].islower():
            # "work-pass" elsewhere in the document: the hyphen belongs to the word.
            text = text + line if head[0] + tail[0] in whole else text[:-1] + line
        else:
            text = f"{text} {line}" if text else line
    return text.replace("\u00ad", "")
