"""Every format from real bytes, and every way in which a file can be unreadable."""

from __future__ import annotations

import io
import logging
import re
import sys
import zipfile
from pathlib import Path

import pypdf
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.chunking.blocks import markdown_blocks
from acme_rag_pipeline.documents import docx_text
from acme_rag_pipeline.documents.characters import CONTROL
from acme_rag_pipeline.documents.parsers import Unreadable, parse, parser_for, supported_suffixes
from acme_rag_pipeline_tests.conftest import PROJECT

SHIPPED = PROJECT / "data/documents"
DOCUMENT_XML = """<?xml version="1.0" encoding="UTF-8"?>
<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>
<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Gift policy</w:t></w:r></w:p>
<w:p><w:r><w:t>Gifts up to 75 euros need no form_name.</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>Gift</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>Limit</w:t></w:r></w:p></w:tc></w:tr>
<w:tr><w:tc><w:p><w:r><w:t>Meal</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>60</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
</w:body></w:document>"""
STYLES_XML = """<?xml version="1.0" encoding="UTF-8"?>
<w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">
<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>"""
TYPES_XML = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="xml" ContentType="application/xml"/></Types>"""
RELS_XML = """<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1"
Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>
</Relationships>"""


def docx(document: str = DOCUMENT_XML, **more: bytes) -> bytes:
    """A minimal Word file."""
    files = {"[Content_Types].xml": TYPES_XML, "_rels/.rels": RELS_XML, "word/document.xml": document}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files | {"word/styles.xml": STYLES_XML} | more).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pdf(*pages: list[str] | bytes | None) -> bytes:
    """A minimal PDF with one text line for each string; bytes stand for a compressed page, None for one with a picture."""
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for at, lines in enumerate(pages):
        packed = isinstance(lines, bytes)
        shown = "" if packed else "".join(f"({line}) Tj 0 -14 Td " for line in lines or [])
        content = lines.decode("latin-1") if packed else f"BT /F1 10 Tf 50 800 Td {shown}ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 850] /Contents {5 + 2 * at} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> {'' if lines is not None else '/XObject << /I << /Subtype /Image >> >>'} >> >>"
        )
        packing = "/Filter /FlateDecode" if packed else ""
        objects.append(f"<< /Length {len(content)} {packing} >>\nstream\n{content}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def refusal(doc_path: str, data: bytes) -> str:
    with pytest.raises(Unreadable) as caught:
        parse(doc_path, data)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".md", ".markdown", ".mdx", ".txt", ".rst", ".adoc", ".log", ".text", ".MD"])
@settings(max_examples=15, deadline=None)
@given(text=st.text(min_size=1))
def test_markdown_and_text_are_taken_character_for_character(suffix: str, text: str) -> None:
    text = f"Text.\r\n{text}\r{text}\x85\u2028 \t"
    assume("\0" not in text and len(CONTROL.findall(text)) <= 0.05 * len(text))
    assert parse(f"a{suffix}", text.encode("utf-8")).text == text


def test_a_byte_order_mark_and_the_colours_of_a_log_stay() -> None:
    text = "\ufeff# Title\r\n\x1b[31mred\x1b[0m\r\n"
    assert parse("a.log", text.encode("utf-8")).text == text
    assert parse("a.md", text.encode("utf-8")).title == "Title"


@settings(max_examples=90, deadline=None)
@given(suffix=st.sampled_from([*supported_suffixes(), ".xyz", ""]), data=st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_unreadable(suffix: str, data: bytes) -> None:
    try:
        parsed = parse(f"folder/a{suffix}", data)
    except Unreadable as refused:
        shown = str(refused)
    else:
        parsed.text.encode("utf-8")
        shown = parsed.title
    assert shown
    assert "\n" not in shown


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["pdf", "docx"]),
    cut=st.floats(0, 1),
    noise=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_raise_nothing_but_unreadable(kind: str, cut: float, noise: list[tuple[float, int]]) -> None:
    data = bytearray(docx() if kind == "docx" else pdf(["Hello there", "good people"], ["second page"]))
    for place, value in noise:
        data[int(place * len(data))] = value
    if cut < 0.5:
        del data[int(cut * 2 * len(data)) :]
    try:
        text = parse(f"a.{kind}", bytes(data)).text
    except Unreadable as refused:
        text = str(refused)
    assert text.strip()


@pytest.mark.parametrize(
    ("doc_path", "data", "reason"),
    [
        ("a.md", b"", "empty"),
        ("a.md", b" \n\t ", "empty"),
        ("a.md", "\ufeff \n".encode(), "no text"),
        ("a.txt", b"abc\0def", "NUL byte at offset 3"),
        ("a.txt", b"\x01\x02\x03abc", "control characters"),
        ("a.txt", b"caf\xe9 au lait", r"not UTF-8 \(byte offset 3\); save the file as UTF-8"),
        ("a.md", "text".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.xyz", b"abc", r"no parser for \.xyz files; if it holds text, save it as one of \.md"),
        ("a.xlsx", b"PK", r"no parser for \.xlsx files; save its tables as HTML, or as Markdown"),
        ("a.PPTX", b"PK", r"no parser for \.pptx files; save it as \.pdf$"),
        ("a.qmd", b"# A", r"no parser for \.qmd files; rename it to \.md$"),
        ("folder.d/README", b"abc", "no suffix"),
        ("a.html", b"<html><script>1</script><nav>x</nav></html>", "no text"),
        ("a.html", b"<div>" * 5_000 + b"x", "deeply nested"),
        ("a.html", b"<div>" * 250 + b"<p>x", "deeply nested: the limit is 250 tags"),
        ("a.docx", bytes.fromhex("d0cf11e0a1b11ae1") + b"\1" * 600, "encrypted.*without a password"),
        ("a.docx", b"PK\3\4 cut off", "damaged"),
        ("a.docx", docx("<w:document"), "damaged"),
        ("a.pdf", b"%PDF-1.7\nnothing", "damaged"),
        ("a.pdf", pdf([]), "no text layer"),
    ],
)
def test_the_reason_says_what_is_wrong(doc_path: str, data: bytes, reason: str) -> None:
    message = refusal(doc_path, data)
    assert re.search(reason, message), message


def test_an_encrypted_pdf_is_refused_and_one_with_an_owner_password_is_read() -> None:
    from pypdf import PdfReader, PdfWriter

    for user_password in ("secret", ""):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(["Top secret plans"]))))
        writer.encrypt(user_password, owner_password="owner", algorithm="RC4-128")
        buffer = io.BytesIO()
        writer.write(buffer)
        if user_password:
            assert refusal("a.pdf", buffer.getvalue()) == "the PDF is encrypted; save a copy without a password"
        else:
            assert parse("a.pdf", buffer.getvalue()).text == "Top secret plans\n"


def test_a_zip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    long = docx(DOCUMENT_XML + " " * 30_000_000)
    assert len(long) < 100_000
    assert refusal("a.docx", long).startswith("its part word/document.xml unpacks to 30 MB, the limit is 30 MB")
    data = docx(**{"word/media/zeros.bin": bytes(30_000_000)})
    assert len(data) < 100_000
    monkeypatch.setattr(docx_text, "MAX_UNPACKED_BYTES", 20_000_000)
    assert refusal("a.docx", data).startswith("unpacks to 30 MB, the limit is 20 MB")


@pytest.mark.parametrize(
    ("library", "doc_path", "data", "extra"),
    [("pypdf", "a.pdf", pdf(["x"]), "[pdf]"), ("mammoth", "a.docx", docx(), "[office]")],
)
def test_a_missing_extra_is_named(
    library: str, doc_path: str, data: bytes, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what Python itself does to forbid an import
    assert f"install acme-rag-pipeline{extra}" in refusal(doc_path, data)


def test_the_libraries_stay_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broken = pdf(["Readable in spite of it"]).replace(b"startxref\n", b"startxref\n9")
    assert "Readable" in parse("a.pdf", broken).text
    parse("a.html", b"<p>https://example.com/a.html")
    parse("a.xhtml", b'<?xml version="1.0"?><html><body>x</body></html>')
    refusal("a.pdf", b"%PDF-1.4 nothing")
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.records) == ("", "", [])


def test_pdf_lines_become_paragraphs() -> None:
    wrapped = [
        "Travel Safety",
        "In danger, call the local emergency number first and then call the assist-",
        "ance line, which answers day and night in all of the languages that our",
        "colleagues speak and can send a doctor.",
        "City Limit",
        "Leeds 140",
        "1. After one hour the application sends you a message to which you have to",
        "answer at once.",
        "2. After two hours the assistance line phones you.",
        "The traveller assistance pays a hospital deposit or books a flight home for the",
        "1",
    ]
    parsed = parse("a/travel-safety.pdf", pdf(wrapped, ["traveller, as far as that is possible on the day.", "2 / 2"]))
    assert parsed.text == (
        "Travel Safety\n\n"
        "In danger, call the local emergency number first and then call the assistance line, which answers day and "
        "night in all of the languages that our colleagues speak and can send a doctor.\n\n"
        "City Limit\nLeeds 140\n"
        "1. After one hour the application sends you a message to which you have to answer at once.\n"
        "2. After two hours the assistance line phones you.\n\n"
        "The traveller assistance pays a hospital deposit or books a flight home for the traveller, as far as that is "
        "possible on the day.\n"
    )
    assert (parsed.title, parsed.format, parsed.parser) == ("Travel Safety", "pdf", "pdf-3")


HOUSE = "Acme Corp, Employee Handbook"


def body(number: int) -> list[str]:
    return [f"Rule {number}", *(f"{number} {word}: {number * 7 % 5} days." for word in "abcdefg")]


def test_headers_and_footers_are_left_out_of_a_pdf_and_said_once() -> None:
    pages = [
        [HOUSE, *(["Staff Rules"] if number == 1 else []), *body(number), "Version 3", f"Page {number} of 4"]
        for number in range(1, 5)
    ]
    pages[1][-3] = "A sentence goes on across the end of its page and is not cut in two parts by the"
    pages[2][1:2] = ["footer that stands between them."]
    parsed = parse("a.pdf", pdf(*pages))
    assert parsed.title == "Staff Rules"
    assert parsed.text.startswith(f"{HOUSE}\nVersion 3\n\nStaff Rules\nRule 1\n")
    assert (parsed.text.count(HOUSE), parsed.text.count("Version 3"), parsed.text.count("Page ")) == (1, 1, 0)
    assert "cut in two parts by the footer that stands between them." in parsed.text
    assert all(f"Rule {number}" in parsed.text for number in (1, 2, 4))


@pytest.mark.parametrize("line", ["Week {} report", "Rules for week {} and later"])
def test_numbered_headings_of_the_pages_of_a_pdf_stay(line: str) -> None:
    pages = [[line.format(number), *body(number)] for number in range(1, 6)]
    text = parse("a.pdf", pdf(*pages)).text
    assert all(line.format(number) in text for number in range(1, 6))


@pytest.mark.parametrize("line", ["Page {} Acme Corp", "Acme Corp {} of 5", "{} Acme Corp", "Acme Corp | {} | 2026"])
def test_page_numbers_beside_words_are_left_out_of_a_pdf(line: str) -> None:
    text = parse("a.pdf", pdf(*([line.format(number), *body(number)] for number in range(1, 6)))).text
    assert "Acme" not in text


def test_a_title_that_the_other_pages_repeat_stays_the_title_of_a_pdf() -> None:
    others = [[HOUSE, *body(number)] for number in (2, 3)]
    assert parse("a.pdf", pdf([HOUSE + ") Tj /F1 8 Tf (", *body(1)], *others)).title == HOUSE
    assert parse("a.pdf", pdf([HOUSE + ") Tj /F1 12 Tf (", *body(1)], *others)).title == "Rule 1"
    titled = pdf(["House style", "Travel rules", *body(1)]).replace(
        b"trailer << ", b"trailer << /Info << /Title (travel RULES) >> "
    )
    assert parse("a.pdf", titled).title == "travel RULES"
    assert parse("a.pdf", titled.replace(b"travel RULES", b"Template 7.d")).title == "House style"


@pytest.mark.parametrize(
    ("pages", "note", "left"),
    [
        ([body(1), ["broken"], body(3)], "page 2 is damaged: save the PDF again, or restore it", "Rule 3"),
        ([body(1), b"no zlib at all", body(3)], "page 2 is damaged: save the PDF again, or restore it", "Rule 3"),
        (
            [["Contract"], *[None] * 20],
            "20 of 21 pages have no text layer: run text recognition (OCR) on it",
            "Contract",
        ),
        ([None, body(2), body(3), None], "", "Rule 2"),
        ([body(1), [], body(3)], "", "Rule 3"),
    ],
)
def test_what_is_missing_of_a_pdf_is_said(pages: list[list[str] | bytes | None], note: str, left: str) -> None:
    parsed = parse("a.pdf", pdf(*pages).replace(b"(broken)", b"(broken "))
    assert parsed.note == note
    assert left in parsed.text


def test_a_pdf_of_scans_with_a_stamp_has_no_text_layer() -> None:
    stamped = pdf(*(["Scanned with a phone", str(number)] for number in range(1, 6)))
    pictured = stamped.replace(b"/F1 3 0 R >>", b"/F1 3 0 R >> /XObject << /I << /Subtype /Image >> >>")
    assert "no text layer" in refusal("a.pdf", pictured)
    assert parse("a.pdf", stamped).text.count("Scanned with a phone") == 5


def test_a_pdf_of_scans_is_called_so_by_an_earlier_pypdf_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Once before: pypdf itself loads the class late.
    for _ in range(2):
        assert "no text layer" in refusal("a.pdf", pdf(None))
        monkeypatch.delattr(pypdf.errors, "LimitReachedError", raising=False)


def test_a_hyphen_that_belongs_to_the_word_stays() -> None:
    lines = [
        "Holders of a work-pass are covered.",
        "The plan also covers everybody who stays in the country on a work-",
    ]
    assert "on a work-pass today." in parse("a.pdf", pdf([*lines, "pass today."])).text


def test_docx_keeps_headings_and_tables() -> None:
    parsed = parse("a.docx", docx())
    assert parsed.text == (
        "# Gift policy\n\nGifts up to 75 euros need no form_name.\n\n| Gift | Limit |\n| --- | --- |\n| Meal | 60 |\n"
    )
    assert (parsed.title, parsed.format, parsed.parser) == ("Gift policy", "docx", "docx-4")


def test_a_docx_is_called_what_its_title_says_and_cells_keep_their_columns() -> None:
    style = '<w:style w:type="paragraph" w:styleId="Titel"><w:name w:val="Title"/></w:style></w:styles>'
    title = '<w:p><w:pPr><w:pStyle w:val="Titel"/></w:pPr><w:r><w:t>Compliance manual</w:t></w:r></w:p>'
    document = DOCUMENT_XML.replace("<w:body>", f"<w:body>{title}").replace("Meal", "Meal | drinks")
    parsed = parse("a.docx", docx(document, **{"word/styles.xml": STYLES_XML.replace("</w:styles>", style).encode()}))
    assert parsed.title == "Compliance manual"
    assert parsed.text.startswith("# Compliance manual\n\n## Gift policy\n\n")
    assert r"| Meal \| drinks | 60 |" in parsed.text


@pytest.mark.parametrize(("value", "shown"), [("", False), ('w:val="true"', False), ('w:val="0"', True)])
def test_what_word_hides_is_no_text(value: str, shown: bool) -> None:
    run = f"<w:r><w:rPr><w:vanish {value}/></w:rPr><w:t>TODO ask Jo </w:t></w:r>"
    document = DOCUMENT_XML.replace("<w:r><w:t>Gifts", f"{run}<w:r><w:t>Gifts")
    assert ("TODO" in parse("a.docx", docx(document)).text) == shown
    assert "Gifts up to 75 euros" in parse("a.docx", docx(document)).text


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<ul><li>a<li>b<ul><li>c</ul><li>d</ul><p>e<p>f", "- a\n- b\n  - c\n- d\n\ne\n\nf\n"),
        ("<ul>" + "<li>x" * 1500, "- x\n" * 1500),
        ("<table><tr><th>A<th>B<tr><td>1<td>2</table>", "| A | B |\n| --- | --- |\n| 1 | 2 |\n"),
        (
            "<table><tr><th>A</th><th>B</th><th>C</th></tr><tr><td rowspan=3>1</td><td>2</td><td rowspan=2>3</td></tr>"
            "<tr><td>4</td></tr><tr><td>5</td><td>6</td></tr><tr><td colspan=2>7</td><td>8</td></tr></table>",
            "| A | B | C |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n| 1 | 4 | 3 |\n| 1 | 5 | 6 |\n| 7 | | 8 |\n",
        ),
        (
            "<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td><table><tr><td>Port</td><td>443</td></tr>"
            "<tr><td>Protocol</td><td>TCP</td></tr></table></td></tr></table>",
            "| A | B |\n| --- | --- |\n| 1 | Port, 443; Protocol, TCP |\n",
        ),
        (
            "<table><tr><td>Menu</td><td><h1>Stairs</h1><p>Keep right.</p><table><tr><th>A</th></tr><tr><td>1</td></tr>"
            "</table></td></tr></table>",
            "Menu\n\n# Stairs\n\nKeep right.\n\n| A |\n| --- |\n| 1 |\n",
        ),
        (
            '<body class="c1 doc-content"><p class="c9 title">Desks</p><p><a href="https://www.google.com/url?q='
            'https://a.example/b%3Fc&amp;sa=D&amp;ust=17">Plan</a>',
            "# Desks\n\n[Plan](https://a.example/b?c)\n",
        ),
        ("<p class=MsoTitle>Fleet</p><h2>Fuel</h2>", "# Fleet\n\n## Fuel\n"),
        (
            '<div id="breadcrumb-section"><ol><li><a href="index.html">IT</a></li></ol></div><h1>VPN</h1><div id="content">'
            '<div class="page-metadata">Created by Jo</div><div id="main-content"><div class="toc-macro"><ul><li>Ask</li>'
            '</ul></div><h2>Ask</h2><p>Open a ticket.</p></div></div><div id="footer" role="contentinfo">Confluence</div>',
            "# VPN\n\n## Ask\n\nOpen a ticket.\n",
        ),
        (
            "<h1><a href='/x'>#</a> Start</h1><table><tr><th>#</th><th>--</th></tr><tr><td>1</td><td>--</td></tr></table>"
            "<p>Foo <span>--</span> bar</p><p>Total\n---</p><p>See\n# 5</p>",
            "# [#](/x) Start\n\n| # | -- |\n| --- | --- |\n| 1 | -- |\n\nFoo -- bar\n\nTotal\n\\---\n\nSee\n\\# 5\n",
        ),
        (
            "<p># yum install foo</p><p>&lt;script&gt; begins it</p><p>```</p><p>Total<br>---</p><p>See #5</p><pre># shell</pre>",
            "\\# yum install foo\n\n<script> begins it\n\n\\```\n\nTotal  \n\\---\n\nSee #5\n\n```\n# shell\n```\n",
        ),
        ("<table><tr><td><p>All keys.<p>Two rules.</td></tr></table><p>x", "All keys.\n\nTwo rules.\n\nx\n"),
        ("<table><tr><td><ul><li>Menu</ul></td><td><p>Keep.<p>Right.</table>", "- Menu\n\nKeep.\n\nRight.\n"),
        ("<table><tr><td>Key</td><td><p>Desk 4</p></td></tr></table>", "| Key | Desk 4 |\n| --- | --- |\n"),
        ('<div><p class="title">Contractors</p><p>x</p></div>', "Contractors\n\nx\n"),
        (
            '<h1>Install<a class="headerlink" href="#i" title="Link to this heading">¶</a></h1><h2>On <b>Linux</b> <a href="#l">#</a>'
            '</h2><h2>Old<a class="headerlink" href="#o">Permalink</a></h2><h2><a class="hash-link" href="#w">All of it</a></h2>'
            '<h2><a href="#c">++</a></h2><h2><a href="#toc">5</a> Rules</h2><p>open()<a class="headerlink" href="#open">¶</a>',
            "# Install\n\n## On **Linux**\n\n## Old\n\n## [All of it](#w)\n\n## [++](#c)\n\n## [5](#toc) Rules\n\nopen()\n",
        ),
        (
            "<header>Acme</header><main><aside>News</aside><button>Accept all</button><button>Reject</button></main><menu><li>a"
            "<li>b</menu><details><summary>Who?</summary>You.</details><p>Press <button>Save</button>, then <label>Go</label>"
            "<input><select><option>All</option></select></p><address>Leeds</address><footer>2026</footer>",
            "Acme\n\nNews\n\nAccept all Reject\n\n- a\n- b\n\nWho?\n\nYou.\n\nPress Save, then Go\n\nLeeds\n\n2026\n",
        ),
        (
            '<p>Seen.<p hidden>no<p style="color:red; DISPLAY : none">no</p></p><div role=tabpanel hidden>tab</div><a href="#more">'
            "more</a><div id=more hidden>and more</div><h3><button>Who?</button></h3><div style='display:none'>You.</div>"
            "<p hidden>open<h2>Kept</h2>",
            "Seen.\n\ntab\n\n[more](#more)\n\nand more\n\n### Who?\n\nYou.\n\nopen\n\n## Kept\n",
        ),
        ("<body style='display:none'><div hidden><p>Shown by a script", "Shown by a script\n"),
        (
            "<p>Loading</p><main style='display:none'><p>All of the rules",
            "Loading\n\nAll of the rules\n",
        ),
        (
            "<p>Rules for everybody who travels</p><h3>Who?</h3><div hidden>You.</div><dl><dt>How</dt><dd hidden>So.</dd></dl>"
            "<p onclick='toggle(this)'>When</p><p style='display:none'>Now.</p><p hidden>no",
            "Rules for everybody who travels\n\n### Who?\n\nYou.\n\nHow\n:   So.\n\nWhen\n\nNow.\n",
        ),
    ],
)
def test_html_as_old_editors_and_exports_write_it(page: str, text: str) -> None:
    assert parse("a.html", page.encode()).text == text


@pytest.mark.parametrize("frames", [0, 150])
def test_how_deep_html_may_be_does_not_depend_on_the_caller(frames: int) -> None:
    if frames:
        test_how_deep_html_may_be_does_not_depend_on_the_caller(frames - 1)
    else:
        assert parse("a.html", b"<div>" * 249 + b"<p>x").text == "x\n"


@pytest.mark.parametrize(
    ("label", "encoding", "text"),
    [
        ("gb2312", "gbk", "朱镕基的退休金"),
        ("shift_jis", "cp932", "①髙橋さんの休暇"),
        ("x-sjis", "cp932", "休暇の案内"),
        ("euc-kr", "cp949", "똠방각하의 휴가"),
        ("iso-8859-9", "cp1254", "“İzin” günü 5 €"),
        ("iso-8859-1", "cp1252", "“Räume” 5 €"),
        ("utf-16", "utf-8", "Räume"),
        ("no-such-name", "utf-8", "Räume"),
        ("utf-8", "cp1252", "Räume für Gäste"),
        ("shift_jis", "utf-8", "休暇の案内"),
    ],
)
def test_html_is_decoded_as_browsers_do(label: str, encoding: str, text: str) -> None:
    assert parse("a.html", f'<meta charset="{label}"><p>{text}</p>'.encode(encoding)).text == f"{text}\n"


@pytest.mark.parametrize(("label", "text"), [("utf-8", "Räume für Gäste"), ("windows-1251", "Отпуск в июле")])
def test_one_broken_byte_does_not_spoil_the_other_characters(label: str, text: str) -> None:
    page = f'<meta charset="{label}"><p>{text}'.encode(label) + {"utf-8": b" \xff", "windows-1251": b" \x98"}[label]
    assert parse("a.html", page).text == f"{text} \ufffd\n"


def test_html_becomes_plain_markdown() -> None:
    page = (
        '<html><head><meta charset="iso-8859-1"><title>Page title</title><style>p{}</style></head><body><nav>menu</nav>'
        "<!-- hidden --><h2>Caf\xe9</h2><p>snake_case 2*3 1. x</p>\n\n\n\n<ul><li>a<ul><li>b</li></ul></li></ul>"
        '<img src="data:image/png;base64,AAAA" alt="a picture"><script>x</script><template>y</template>'
        "<table><tr><th>A</th></tr><tr><td>1</td></tr></table></body></html>"
    )
    parsed = parse("a.html", page.encode("latin-1"))
    assert parsed.text == ("## Café\n\nsnake_case 2*3 1. x\n\n- a\n  - b\n\na picture\n\n| A |\n| --- |\n| 1 |\n")
    assert parsed.title == "Café"


@pytest.mark.parametrize(
    ("doc_path", "text", "title"),
    [
        ("a.md", '---\nowner: x\ntitle: "FLEX: days" # note\n---\n# Other', "FLEX: days"),
        ("a.md", "---\r\ntitle: FLEX\r\n---\r\n", "FLEX"),
        ("a.md", "---\nsidebar_position: 3\n---\n# Getting started", "Getting started"),
        ("a.md", "---\n# comment\nlayout: post\n---\nReal\n===\n", "Real"),
        ("a.md", "```\n# code\n```\n## **Second** [level](http://x) ##\n", "Second level"),
        ("a.md", "### Third\n\nSetext\n---\n", "Setext"),
        ("a.md", "| a |\n|---|\n\n- item\n---\n", "A"),
        ("a.md", '+++\ndate = 2024-03-01\ntitle = "Your first week"\n+++\n# Other', "Your first week"),
        ("a.md", "# Travel[^1] { #travel .wide }\n", "Travel"),
        ("a.mdx", "## Lost devices {/* #lost */}\n", "Lost devices"),
        ("a.rst", "=====\nGuide\n=====\n", "Guide"),
        ("a.adoc", "= Releases\n:toc:\n\n[NOTE]\n====\nSoon.\n====\n", "Releases"),
        ("a.adoc", "Releases\n========\n\nText.\n", "Releases"),
        ("hr/leave_of-absence.txt", "no heading", "Leave of absence"),
        ("a.html", "<title> The \n page </title><p>x", "The page"),
        ("my-page.html", "<p>x", "My page"),
    ],
)
def test_titles(doc_path: str, text: str, title: str) -> None:
    assert parse(doc_path, text.encode("utf-8")).title == title


@pytest.mark.parametrize(
    ("heading", "title"),
    [
        ("# The *quick* guide", "The quick guide"),
        ("# Tom &amp; Jerry", "Tom & Jerry"),
        ("# C\\# guide", "C# guide"),
        ("# Use <kbd>Ctrl</kbd>", "Use Ctrl"),
        ('# [Tool](https://x.example/a_(b) "tip")', "Tool"),
        ("# Install <a id=x></a>", "Install"),
        ("# <a id=x></a>\n\n# Install ##", "Install"),
        ("The *quick* guide\n---", "The quick guide"),
    ],
)
def test_a_title_is_the_heading_as_passages_show_it(heading: str, title: str) -> None:
    parsed = parse("a.md", f"{heading}\n\ntext".encode())
    assert parsed.title == title
    assert [block.title for block in markdown_blocks(parsed.text) if block.level] == [title]


def test_hostile_titles_cost_no_time() -> None:
    for text in ("# x" + " " * 500_000 + "y", "# " + "[" * 500_000, "#" + " " * 500_000, "x\n" * 300_000):
        parse("a.md", text.encode("utf-8"))


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (f"<h1>Index{'<a href=#x>x</a>' * 8_000}", "Index"),
        (f"Tags{'<label>x</label>' * 8_000}", "Tags x x"),
        (f"<p>Pick</p>{'<select><option>x' * 8_000}", "Pick"),
    ],
)
def test_hostile_pages_cost_no_time(page: str, shown: str) -> None:
    assert shown in parse("a.html", page.encode()).text


def test_cells_over_many_rows_are_repeated_within_reason() -> None:
    cells = "".join(f"<td rowspan=200>{n}</td>" for n in range(400))
    page = f"<table><tr>{cells}</tr>{'<tr><td>end</td></tr>' * 200}</table>"
    text = parse("a.html", page.encode()).text
    assert text.count("end") == 200
    assert len(text) < 12 * len(page)


def test_every_suffix_has_a_versioned_parser() -> None:
    assert set(supported_suffixes()) >= {".md", ".txt", ".html", ".pdf", ".docx"}
    assert parser_for("x/A.MD") == "markdown-5"
    assert all(re.search(r"-\d+$", parser_for(f"a{suffix}") or "") for suffix in supported_suffixes())
    assert parser_for("a.xyz") is None
    assert parser_for("a") is None


@pytest.mark.parametrize(
    ("name", "quotes"),
    [
        ("benefits/retirement-plans.pdf", ["Acme matches 100 percent of the first 4 percent of pay", "(Benefits)"]),
        ("leave/leave-faq.html", ["\n### Why does my balance show hours?\n", "| I have the flu | Mend days |"]),
        ("handbook/code-of-conduct.docx", ["\n## 3. Gifts and hospitality\n", "| Meal | up to EUR 60 |"]),
    ],
)
def test_shipped_documents_read_well(name: str, quotes: list[str]) -> None:
    text = parse(name, Path(SHIPPED / name).read_bytes()).text
    assert [quote for quote in quotes if quote not in text] == []
    assert "\ufb01" not in text
    assert "\n\n\n" not in text
