"""From the bytes of one document to its text and title, or to one sentence that says why there is none.

Markdown and plain text are taken character for character, so that offsets into the file are offsets into the text.
HTML, PDF and DOCX become Markdown-like text.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import logging
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from acme_rag_pipeline.documents.headings import headings
from acme_rag_pipeline.documents.html_markdown import SURROGATE, html_to_markdown
from acme_rag_pipeline.documents.lines import front_matter_end

# Bump the version of a parser when its output changes: documents are parsed again only then.
_PARSERS = {
    "markdown-4": ("markdown", (".md", ".markdown", ".mdx")),
    "text-2": ("text", (".txt", ".log", ".text")),
    "rst-1": ("rst", (".rst",)),
    "asciidoc-2": ("asciidoc", (".adoc", ".asciidoc")),
    "html-5": ("html", (".html", ".htm", ".xhtml")),
    "pdf-1": ("pdf", (".pdf",)),
    "docx-3": ("docx", (".docx",)),
}
# Of all parsers together, for what shows which code made the documents.
PARSER_VERSIONS = ", ".join(_PARSERS)
_BY_SUFFIX = {suffix: (kind, name) for name, (kind, suffixes) in _PARSERS.items() for suffix in suffixes}
MAX_UNPACKED_BYTES = 200_000_000
MAX_CONTROL_SHARE = 0.05
MAX_TITLE = 200
_OLE_HEADER = bytes.fromhex("d0cf11e0a1b11ae1")
# What browsers read instead of a declared encoding (WHATWG Encoding Standard): mostly the superset that its users mean.
_READ_AS = {
    "ascii": "windows-1252",
    "iso8859-1": "windows-1252",
    "iso8859-9": "windows-1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
_CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")  # not \b \t \n \v \f \r and the escape of coloured logs
_LIGATURE = re.compile("[\ufb00-\ufb06]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}#{1,2}[ \t]+(\S.*)")
_HEADING_MARKS = re.compile(r"\{[ \t]*(?:[#.:]|/\*)[^{}]*\}[ \t]*$|\[\^[^\[\]\s]+\]")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_NOT_PROSE = re.compile(r"\s*([>|=#:<]|[-*+]\s|[-=]{2,}|\d+[.)]\s)")
_LIST_ITEM = re.compile(r"([-*•‣◦▪–●○]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_SENTENCE_END = re.compile(r"[.!?:;…][\"'”’)\]]*$")


MISSING_PACKAGE = "install acme-rag-pipeline"
# In reasons that say nothing about the file alone: tomorrow it may be read.
MAY_PASS = (MISSING_PACKAGE, "too large to be parsed", "is encrypted")


class Unreadable(Exception):
    """The document has no text that can be used; the message is one sentence that says why and what to do."""


@dataclass(frozen=True)
class Parsed:
    """A readable document.

    Attributes:
        text: valid Unicode; but for HTML, PDF and DOCX exactly the file's characters.
        title: one line for people and for the context of a chunk.
        format: 'markdown', 'text', 'rst', 'asciidoc', 'html', 'pdf' or 'docx'.
        parser: name and version of what made the text.
    """

    text: str
    title: str
    format: str
    parser: str


def supported_suffixes() -> tuple[str, ...]:
    """The file name endings that have a parser, in lower case and with the dot."""
    return tuple(_BY_SUFFIX)


def parser_for(doc_path: str) -> str | None:
    """Name and version of the parser for this path, or None without one."""
    return _BY_SUFFIX.get(PurePosixPath(doc_path).suffix.lower(), (None, None))[1]


def format_of(doc_path: str) -> str | None:
    """The format that this path's ending says, as in `Parsed`, or None where no parser reads it."""
    return _BY_SUFFIX.get(PurePosixPath(doc_path).suffix.lower(), (None, None))[0]


def parse(doc_path: str, data: bytes) -> Parsed:
    """Text and title of a document.

    Raises:
        Unreadable: there is no usable text; no other exception leaves this function.
    """
    suffix = PurePosixPath(doc_path).suffix.lower()
    if not suffix:
        raise Unreadable("the file name has no suffix, so its format is unknown; rename it, for example to .md or .txt")
    if suffix not in _BY_SUFFIX:
        raise Unreadable(f"no parser for {suffix} files; save it as one of {' '.join(supported_suffixes())}")
    if not data.strip():
        raise Unreadable("the file is empty")
    kind, parser = _BY_SUFFIX[suffix]
    read: Callable[[bytes], tuple[str, str]] = {"html": _html, "pdf": _pdf, "docx": _docx}.get(kind, _plain)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text, inner_title = read(data)
        if not text.replace("\ufeff", "").strip():
            raise Unreadable("the file holds no text, only white space or markup")
        heading = (
            "" if kind == "pdf" else (kind == "markdown" and _front_matter_title(text)) or _heading_title(text, kind)
        )
        title = _one_line(heading) or _one_line(inner_title) or title_of_file_name(doc_path)
    except Unreadable:
        raise
    except (RecursionError, MemoryError) as error:
        raise Unreadable("too deeply nested or too large to be parsed; simplify or split it") from error
    except Exception as error:
        # Only the kind of the error: library messages can hold memory addresses and would differ between runs.
        raise Unreadable(f"damaged or not a {kind} file ({type(error).__name__}); save it again") from error
    return Parsed(text, SURROGATE.sub("\ufffd", title), kind, parser)


def _plain(data: bytes) -> tuple[str, str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("the file is UTF-16; save it as UTF-8")
    if (at := data.find(b"\0")) != -1:
        raise Unreadable(f"binary data, not text (NUL byte at offset {at}); remove it or give it its right suffix")
    try:
        return _not_binary(data.decode("utf-8")), ""
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte offset {error.start}); save the file as UTF-8") from error


def _not_binary(text: str) -> str:
    if "\0" in text or len(_CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        raise Unreadable("binary data, not text (control characters); remove it or give it its right suffix")
    return text


def _html(data: bytes) -> tuple[str, str]:
    """Decode as browsers do; not by guessing from statistics, which depends on what else is installed."""
    from bs4.dammit import EncodingDetector

    data, marked = EncodingDetector.strip_byte_order_mark(data)
    likely = "utf-8"
    if declared := EncodingDetector.find_declared_encoding(data, is_html=True):
        with contextlib.suppress(LookupError):
            likely = codecs.lookup(declared.lower().removeprefix("x-")).name
    likely = marked or _READ_AS.get(likely, likely)
    # A mark at the beginning leaves no doubt.
    others = [] if marked else ["utf-8", "windows-1252"]
    text = _decoded(data, likely, others)
    if text is None:
        tried = ", ".join(dict.fromkeys((likely, *others)))
        raise Unreadable(f"the characters fit none of the encodings {tried}; save the file as UTF-8")
    return html_to_markdown(_not_binary(text))


def _decoded(data: bytes, likely: str, others: list[str]) -> str | None:
    """The text; by the last of the others, which fits nearly everything, only where nothing else does."""
    for encoding in (likely, *others[:-1]):
        with contextlib.suppress(UnicodeError, LookupError):
            return data.decode(encoding)
    with contextlib.suppress(UnicodeError, LookupError):
        # A few bytes that fit in nowhere do not speak against the many that do.
        text = data.decode(likely, "replace")
        if 2 * text.count("\ufffd") <= sum(not character.isascii() for character in text):
            return text
    for encoding in others[-1:]:
        with contextlib.suppress(UnicodeError):
            return data.decode(encoding)
    return None


def _docx(data: bytes) -> tuple[str, str]:
    if data.startswith(_OLE_HEADER):
        raise Unreadable("encrypted, or an old .doc under a new name; save it as .docx without a password")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    # zipfile never unpacks more than the directory announces, so the announced sizes can be relied on.
    if (unpacked := sum(member.file_size for member in members)) > MAX_UNPACKED_BYTES:
        sizes = f"{unpacked / 1e6:.0f} MB, the limit is {MAX_UNPACKED_BYTES / 1e6:.0f} MB"
        raise Unreadable(f"unpacks to {sizes}; split it or remove its pictures")
    try:
        import mammoth
    except ImportError as error:
        raise Unreadable(f"reading DOCX files needs mammoth; {MISSING_PACKAGE}[office]") from error
    without_data = mammoth.images.img_element(lambda image: {"src": ""})
    # Where the title is not in the style of a heading, the first section would name the document.
    title = "p[style-name='Title'] => h1:fresh"
    html = mammoth.convert_to_html(io.BytesIO(data), convert_image=without_data, style_map=title).value
    return html_to_markdown(html)


def _pdf(data: bytes) -> tuple[str, str]:
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
    text = _CONTROL.sub("", SURROGATE.sub("\ufffd", text))
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
        return next((heading.title for heading in headings(text, kind)), "")
    fence, before = "", ""
    for line in (
        line[:1000]
        for line in text[front_matter_end(text) if kind == "markdown" else 0 :].removeprefix("\ufeff").splitlines()
    ):
        mark = _FENCE.match(line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif heading := _HEADING.fullmatch(line):
            return re.sub(r"[ \t]+#+[ \t]*$", "", _HEADING_MARKS.sub("", heading[1]).rstrip())
        elif before.strip() and not _NOT_PROSE.match(before) and _UNDERLINE.fullmatch(line):
            return before
        before = line
    return ""


def _one_line(title: str) -> str:
    plain = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", title[:1000])
    plain = re.sub(r"(\*\*|__|`)", "", plain)
    return " ".join(_CONTROL.sub("", plain).split())[:MAX_TITLE].strip()


def title_of_file_name(doc_path: str) -> str:
    """The title of a document that tells none: the words of its file's name."""
    words = re.sub(r"[-_\s]+", " ", PurePosixPath(doc_path).stem).strip()
    return _one_line(words[:1].upper() + words[1:] or doc_path)
