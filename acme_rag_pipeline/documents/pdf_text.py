"""The text layer of a PDF as paragraphs."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.documents.characters import CONTROL, SURROGATE
from acme_rag_pipeline.documents.unreadable import MISSING_PACKAGE, Unreadable

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader

MAX_PAGES = 10_000
MAX_CHARACTERS = 20_000_000
# Of a page with a picture that has no other text: a stamp, a page number.
MAX_STAMP = 40
# Where headers and footers stand.
EDGE_LINES = 3
_LONGEST_RUNNING = 200
_NUMBER = re.compile(r"[0-9]{1,6}")
_PAGE_WORD = re.compile(r"(?:page|seite|pagina|página|p|s)\.?", re.IGNORECASE)
_PAGE_NUMBER = re.compile(
    rf"({_PAGE_WORD.pattern} )?[-–]? ?([0-9]{{1,6}}) ?[-–]?( ?(?:of|von|de|/) ?\d+)?", re.IGNORECASE
)
# "Week 3 report", one on each page, is a heading; not so "Page 3 Handbook" and "Handbook 3 of 9".
_SAID = re.compile(
    rf"\b(?!{_PAGE_WORD.pattern} )[^\W\d_]+ ([0-9]{{1,6}})(?= (?!(?:of|von|de) ?\d)[^\W\d_])", re.IGNORECASE
)
_LIGATURE = re.compile("[\ufb00-\ufb06]")
_LIST_ITEM = re.compile(r"([-*•‣◦▪–●○]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_SENTENCE_END = re.compile(r"[.!?:;…][\"'”’)\]]*$")


def pdf_to_text(data: bytes) -> tuple[str, str, str]:
    """Text, title (empty where no line can be one) and, where pages are missing in the text, a note that says so.

    Raises:
        Unreadable: encrypted, too long, or without a page that has text.
        Exception: of many kinds, where not one page could be read.
    """
    try:
        import pypdf
    except ImportError as error:
        raise Unreadable(f"reading PDF files needs pypdf; {MISSING_PACKAGE}[pdf]") from error
    # It warns about every oddity of a file that it can read nevertheless; what it cannot read raises.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)
    try:
        return _text_of(pypdf.PdfReader(io.BytesIO(data)))
    except getattr(pypdf.errors, "LimitReachedError", ()) as error:  # version 5 has none
        raise Unreadable("it unpacks to more than a reader of PDF allows; split it or save it again") from error


def _text_of(reader: PdfReader) -> tuple[str, str, str]:
    unlocked = not reader.is_encrypted
    # A PDF that only restricts printing opens with the empty password; an unknown or AES scheme may raise.
    with contextlib.suppress(Exception):
        unlocked = unlocked or bool(reader.decrypt(""))
    if not unlocked:
        raise Unreadable("the PDF is encrypted; save a copy without a password")
    if (count := len(reader.pages)) > MAX_PAGES:
        raise Unreadable(f"has {count:,} pages, the limit is {MAX_PAGES:,}; split it")
    read = _read(reader)
    pages, running = without_running_lines([page.lines for page in read])
    if not _says_something(pages) and not any(page.has_image for page in read):
        # The same short page again and again is no scan with a stamp.
        pages, running = [page.lines for page in read], []
    damage = _on_damage(read)
    if not _says_something(pages):
        raise Unreadable(damage or "the PDF has no text layer (scanned?); run text recognition (OCR) on it")
    note = "; ".join(filter(None, (damage, _on_scans(read, pages))))
    lines = [line for page in pages for line in _stripped(page)]
    title = (
        _named_on_the_first_page(reader, read[0].lines)
        or _running_title(reader, read[0].lines, running)
        or next((line for line in lines if _may_be_title(line)), "")
    )
    head = "".join(f"{line}\n" for line in running)
    return f"{head}\n{_paragraphs(lines)}".lstrip("\n"), title, note


@dataclass(frozen=True)
class _Page:
    lines: list[str]
    damaged: bool
    has_image: bool


def _read(reader: PdfReader) -> list[_Page]:
    found: list[_Page] = []
    failures: list[Exception] = []
    characters = 0
    for page in reader.pages:
        try:
            text = page.extract_text()
        except (RecursionError, MemoryError):
            raise
        except Exception as error:
            failures.append(error)
            found.append(_Page([], damaged=True, has_image=False))
            continue
        if (characters := characters + len(text)) > MAX_CHARACTERS:
            raise Unreadable(f"has more than {MAX_CHARACTERS / 1e6:.0f} million characters; split it")
        text = _LIGATURE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text).replace("\f", "\n")
        text = CONTROL.sub("", SURROGATE.sub("\ufffd", text))
        lines = [re.sub(r"[ \t\xa0]+", " ", line).strip() for line in text.splitlines()]
        found.append(_Page(lines, _is_cut(page), len(text) < 10 * MAX_STAMP and _has_image(page)))
    if failures and len(failures) == len(found):
        raise failures[0]
    return found


def _is_cut(page: PageObject) -> bool:
    """Whether the bytes of a page break off in their compression, of which pypdf says nothing."""
    with contextlib.suppress(Exception):
        contents: Any = page["/Contents"]
        for part in contents if isinstance(contents, list) else [contents]:
            stream: Any = part.get_object()
            if stream.get("/Filter") in ("/FlateDecode", ["/FlateDecode"]):
                try:
                    zlib.decompressobj().decompress(stream._data, MAX_CHARACTERS)
                except zlib.error as error:
                    # A wrong check sum comes behind the last byte of the text.
                    if "incorrect data check" not in str(error):
                        return True
    return False


def _has_image(page: PageObject) -> bool:
    with contextlib.suppress(Exception):
        resources: list[Any] = [page["/Resources"].get_object()]
        for depth in range(2):
            objects = [one.get_object() for some in resources for one in some.get("/XObject", {}).get_object().values()]
            if any(one.get("/Subtype") == "/Image" for one in objects):
                return True
            resources = [one["/Resources"].get_object() for one in objects if "/Resources" in one] if not depth else []
    return False


def _on_damage(pages: Sequence[_Page]) -> str:
    numbers = [str(number) for number, page in enumerate(pages, 1) if page.damaged]
    if not numbers:
        return ""
    named = ", ".join(numbers[:5]) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")
    which = f"page {named} is damaged" if len(numbers) == 1 else f"pages {named} are damaged"
    return f"{which}: save the PDF again, or restore it"


def _on_scans(pages: Sequence[_Page], texts: Sequence[Sequence[str]]) -> str:
    textless = [
        number
        for number, (page, lines) in enumerate(zip(pages, texts, strict=True))
        if page.has_image and sum(map(len, lines)) < MAX_STAMP
    ]
    # A picture and a few words make a cover.
    covers = {0, len(pages) - 1} if len(pages) > 3 else set()
    if not set(textless) - covers:
        return ""
    return f"{len(textless)} of {len(pages)} pages have no text layer: run text recognition (OCR) on it"


def without_running_lines(pages: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[str]]:
    """Pages without headers and footers, and, once each, those of them that say the same on all pages.

    A line is one if it stands among the first or last three of at least half of the pages (and of three) that have text,
    its page number left out.
    """
    edges = [_edges(page) for page in pages]
    # In the order of the pages: that of a set would differ from run to run.
    on_pages = Counter(
        form
        for number, (page, at) in enumerate(zip(pages, edges, strict=True))
        for form in dict.fromkeys(form for n in at for form in _forms(page[n], number))
    )
    least = max(3, (sum(map(bool, edges)) + 1) // 2)
    running = {form for form, count in on_pages.items() if count >= least}
    left: list[list[str]] = []
    for number, (page, at) in enumerate(zip(pages, edges, strict=True)):
        lines = list(page)
        for n in at:
            outermost = n in (at[0], at[-1])
            if not running.isdisjoint(_forms(lines[n], number)) or _is_page_number(lines[n], number + 1, outermost):
                lines[n] = ""
        left.append(lines)
    kept = [form for form in on_pages if form in running and "\f" not in form and any(map(str.isalpha, form))]
    return left, kept if _says_something(left) else []


def _forms(line: str, page: int) -> Iterator[str]:
    """The line, and with each of its numbers as the distance from the page's, by which a page number is the same on all pages."""
    yield line
    words = re.findall(r"[^\W\d_]+", line[:_LONGEST_RUNNING])
    # "Chapter 1" at the top of one page and "Chapter 2" of the next are no page numbers.
    if len(line) <= _LONGEST_RUNNING and (len(words) != 1 or _PAGE_WORD.fullmatch(words[0])):
        said = {found.start(1) for found in _SAID.finditer(line)}
        for found in (number for number in _NUMBER.finditer(line) if number.start() not in said):
            yield f"{line[: found.start()]}\f{int(found[0]) - page}{line[found.end() :]}"


def _says_something(pages: Sequence[Sequence[str]]) -> bool:
    return any(any(map(str.isalnum, line)) for page in pages for line in page)


def _edges(page: Sequence[str]) -> list[int]:
    filled = [at for at, line in enumerate(page) if line]
    return sorted({*filled[:EDGE_LINES], *filled[-EDGE_LINES:]})


def _is_page_number(line: str, number: int, outermost: bool) -> bool:
    found = _PAGE_NUMBER.fullmatch(line)
    # A number alone may be a row of a table.
    return found is not None and int(found[2]) == number and (outermost or bool(found[1] and found[3]))


def _named_on_the_first_page(reader: PdfReader, page: Sequence[str]) -> str:
    """The title that the PDF was given, if it is more than what a program made of a file name or a template."""
    with contextlib.suppress(Exception):
        title = " ".join(
            CONTROL.sub("", SURROGATE.sub("\ufffd", str(dict(reader.metadata or {}).get("/Title") or ""))).split()
        )
        words = _words(title)
        if words and f" {words} " in f" {_words(' '.join(page))} ":
            return title
    return ""


def _running_title(reader: PdfReader, page: Sequence[str], running: Sequence[str]) -> str:
    """The first line where it is a title that the other pages repeat: in the largest letters of its page."""
    first = next(filter(_may_be_title, page), "")
    if first not in running:
        return ""
    heights: dict[float, str] = {}

    def see(text: str, matrix: Sequence[float], text_matrix: Sequence[float], font: object, size: float) -> None:
        if any(map(str.isalnum, text)):
            height = round(abs(size * text_matrix[3] * matrix[3]), 1)
            heights[height] = f"{heights.get(height, '')} {text}"

    with contextlib.suppress(Exception):
        reader.pages[0].extract_text(visitor_text=see)
    is_largest = len(heights) > 1 and f" {_words(first)} " in f" {_words(heights[max(heights)])} "
    return first if is_largest else ""


def _may_be_title(line: str) -> bool:
    return len(line) <= 100 and any(map(str.isalnum, line))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _stripped(page: Sequence[str]) -> list[str]:
    # Without empty lines at its ends, a paragraph goes on across the page break.
    return "\n".join(page).strip("\n").split("\n")


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
