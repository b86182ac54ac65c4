"""DOCX as Markdown."""

from __future__ import annotations

import io
import re
import zipfile
from xml.etree import ElementTree

from acme_rag_pipeline.documents.html_markdown import html_to_markdown
from acme_rag_pipeline.documents.unreadable import MISSING_PACKAGE, Unreadable

MAX_UNPACKED_BYTES = 200_000_000
# A part takes fifty times its size in memory, and several seconds for each megabyte.
MAX_PART_BYTES = 30_000_000
_OLE_HEADER = bytes.fromhex("d0cf11e0a1b11ae1")
_WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_NO = ("0", "false", "off")
# Where the title is not in the style of a heading, the first section would name the document.
_STYLES = "p[style-name='Title'] => h1.title:fresh"
_HEADING = re.compile(r"<h([1-5])>(.*?)</h\1>", re.DOTALL)


def docx_to_markdown(data: bytes) -> tuple[str, str]:
    """Text in Markdown, and an empty title.

    Raises:
        Unreadable: encrypted or too large.
        Exception: of many kinds, where it is damaged.
    """
    if data.startswith(_OLE_HEADER):
        raise Unreadable("encrypted, or an old .doc under a new name; save it as .docx without a password")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        # zipfile never unpacks more than the directory announces, so the announced sizes can be relied on.
        _check_size("", sum(member.file_size for member in members), MAX_UNPACKED_BYTES)
        for member in members:
            if member.filename.endswith(".xml"):
                _check_size(f"its part {member.filename} ", member.file_size, MAX_PART_BYTES)
        texts = [member.filename for member in members if re.fullmatch(r"word/document\d*\.xml", member.filename)]
        hidden = {name: content for name in texts if b"vanish" in (content := archive.read(name))}
    try:
        import mammoth
    except ImportError as error:
        raise Unreadable(f"reading DOCX files needs mammoth; {MISSING_PACKAGE}[office]") from error
    if hidden:
        data = _replaced(data, {name: _without_hidden_runs(content) for name, content in hidden.items()})
    without_data = mammoth.images.img_element(lambda image: {"src": ""})
    html = mammoth.convert_to_html(io.BytesIO(data), convert_image=without_data, style_map=_STYLES).value
    if '<h1 class="title">' in html:
        # A title stands above the first of the headings, not beside it.
        html = _HEADING.sub(lambda found: f"<h{int(found[1]) + 1}>{found[2]}</h{int(found[1]) + 1}>", html)
    return html_to_markdown(html)


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise Unreadable(
            f"{what}unpacks to {size / 1e6:.0f} MB, the limit is {limit / 1e6:.0f} MB; split it or remove its pictures"
        )


def _without_hidden_runs(document: bytes) -> bytes:
    """The part without the text that Word does not show."""
    root = ElementTree.fromstring(document)
    for parent in root.iter():
        for run in parent.findall(f"{_WORD}r"):
            hidden = run.find(f"{_WORD}rPr/{_WORD}vanish")
            # Without their begin or end, fields would swallow what follows.
            if hidden is not None and hidden.get(f"{_WORD}val") not in _NO and run.find(f"{_WORD}fldChar") is None:
                parent.remove(run)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _replaced(data: bytes, parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            target.writestr(name, parts.get(name) or source.read(name))
    return buffer.getvalue()
