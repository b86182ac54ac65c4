"""From the bytes of one document to its text and title, or to one sentence that says why there is none.

Markdown and plain text are taken character for character, so that offsets into the file are offsets into the text.
HTML, PDF and DOCX become Markdown-like text.
"""

from __future__ import annotations

import codecs
import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from acme_rag_pipeline.documents.characters import CONTROL, SURROGATE
from acme_rag_pipeline.documents.docx_text import docx_to_markdown
from acme_rag_pipeline.documents.html_markdown import html_to_markdown
from acme_rag_pipeline.documents.pdf_text import pdf_to_text
from acme_rag_pipeline.documents.titles import title_of
from acme_rag_pipeline.documents.unreadable import MISSING_PACKAGE, Unreadable

# Bump the version of a parser when its output changes: documents are parsed again only then.
_PARSERS = {
    "markdown-5": ("markdown", (".md", ".markdown", ".mdx")),
    "text-3": ("text", (".txt", ".log", ".text")),
    "rst-1": ("rst", (".rst",)),
    "asciidoc-2": ("asciidoc", (".adoc", ".asciidoc")),
    "html-7": ("html", (".html", ".htm", ".xhtml")),
    "pdf-3": ("pdf", (".pdf",)),
    "docx-4": ("docx", (".docx",)),
}
# Of all parsers together, for what shows which code made the documents.
PARSER_VERSIONS = ", ".join(_PARSERS)
_BY_SUFFIX = {suffix: (kind, name) for name, (kind, suffixes) in _PARSERS.items() for suffix in suffixes}
# Files that people have beside their documents, and what makes them readable.
_OTHER_KINDS = {
    "save it as .docx or .pdf": (".doc", ".docm", ".dot", ".odt", ".rtf", ".pages", ".epub", ".wpd"),
    "save its tables as HTML, or as Markdown with a sentence on what a row says": (
        *(".xlsx", ".xls", ".xlsm", ".ods", ".csv", ".tsv", ".numbers"),
    ),
    "save it as .pdf": (".pptx", ".ppt", ".pptm", ".odp", ".key"),
    "a picture has no text; describe it in a document": (
        *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".ico"),
    ),
    "write down what is said in it": (*(".mp4", ".mov", ".mkv", ".avi", ".webm", ".mp3", ".wav", ".m4a", ".ogg"),),
    "unpack it": (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz"),
    "rename it to .md": (".mdown", ".mkd", ".mkdn", ".markdn", ".rmd", ".qmd"),
    "save its text as .html or .txt": (".eml", ".msg", ".mhtml", ".mht"),
}
_ADVICE = {suffix: advice for advice, suffixes in _OTHER_KINDS.items() for suffix in suffixes}
MAX_CONTROL_SHARE = 0.05
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


# In reasons that say nothing about the file alone: tomorrow it may be read.
MAY_PASS = (MISSING_PACKAGE, "too large to be parsed", "is encrypted")


@dataclass(frozen=True)
class Parsed:
    """A readable document.

    Attributes:
        text: valid Unicode; but for HTML, PDF and DOCX exactly the file's characters.
        title: one line for people and for the context of a chunk.
        format: 'markdown', 'text', 'rst', 'asciidoc', 'html', 'pdf' or 'docx'.
        parser: name and version of what made the text.
        note: what of the document is not in the text, and what to do about it; empty where nothing is known to be missing.
    """

    text: str
    title: str
    format: str
    parser: str
    note: str = ""


def supported_suffixes() -> tuple[str, ...]:
    """The file name endings that have a parser, in lower case and with the dot."""
    return tuple(_BY_SUFFIX)


def parser_for(doc_path: str) -> str | None:
    """Name and version of the parser for this path, or None without one."""
    return _BY_SUFFIX.get(PurePosixPath(doc_path).suffix.lower(), (None, None))[1]


def format_of(doc_path: str) -> str | None:
    """The format that this path's ending says, as in `Parsed`, or None where no parser reads it."""
    return _BY_SUFFIX.get(PurePosixPath(doc_path).suffix.lower(), (None, None))[0]


def refused_by_name(doc_path: str) -> str:
    """Why no parser reads this path, and what to do; empty where one does."""
    suffix = PurePosixPath(doc_path).suffix.lower()
    if not suffix:
        return "the file name has no suffix, so its format is unknown; rename it, for example to .md or .txt"
    if suffix in _BY_SUFFIX:
        return ""
    advice = _ADVICE.get(suffix) or f"if it holds text, save it as one of {' '.join(supported_suffixes())}"
    return f"no parser for {suffix} files; {advice}"


def parse(doc_path: str, data: bytes) -> Parsed:
    """Text and title of a document.

    Raises:
        Unreadable: there is no usable text; no other exception leaves this function.
    """
    if refused := refused_by_name(doc_path):
        raise Unreadable(refused)
    if not data.strip():
        raise Unreadable("the file is empty")
    kind, parser = _BY_SUFFIX[PurePosixPath(doc_path).suffix.lower()]
    read: Callable[[bytes], tuple[str, str, str]] = {"html": _html, "pdf": pdf_to_text, "docx": _docx}.get(kind, _plain)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text, inner_title, note = read(data)
        if not text.replace("\ufeff", "").strip():
            raise Unreadable("the file holds no text, only white space or markup")
        title = title_of(doc_path, text, kind, inner_title)
    except Unreadable:
        raise
    except (RecursionError, MemoryError) as error:
        raise Unreadable("too deeply nested or too large to be parsed; simplify or split it") from error
    except Exception as error:
        # Only the kind of the error: library messages can hold memory addresses and would differ between runs.
        raise Unreadable(f"damaged or not a {kind} file ({type(error).__name__}); save it again") from error
    return Parsed(text, SURROGATE.sub("\ufffd", title), kind, parser, note)


def _plain(data: bytes) -> tuple[str, str, str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise Unreadable("the file is UTF-16; save it as UTF-8")
    if (at := data.find(b"\0")) != -1:
        raise Unreadable(f"binary data, not text (NUL byte at offset {at}); remove it or give it its right suffix")
    try:
        return _not_binary(data.decode("utf-8")), "", ""
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte offset {error.start}); save the file as UTF-8") from error


def _not_binary(text: str) -> str:
    if "\0" in text or len(CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        raise Unreadable("binary data, not text (control characters); remove it or give it its right suffix")
    return text


def _html(data: bytes) -> tuple[str, str, str]:
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
    return *html_to_markdown(_not_binary(text)), ""


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


def _docx(data: bytes) -> tuple[str, str, str]:
    return *docx_to_markdown(data), ""
