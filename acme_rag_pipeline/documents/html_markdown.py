"""HTML as Markdown, with what editors and exports leave open, merge or put around a page."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Set
from typing import Any
from urllib.parse import unquote

from acme_rag_pipeline.documents.characters import SURROGATE
from acme_rag_pipeline.documents.unreadable import Unreadable

# What may be left open in HTML: the tag closes these if one of them is its parent.
_CLOSES = {
    "p": ("p",),
    "li": ("li", "p"),
    "dt": ("dt", "dd", "p"),
    "dd": ("dt", "dd", "p"),
    "td": ("td", "th", "p"),
    "th": ("td", "th", "p"),
    "tr": ("tr", "td", "th", "p"),
}
MAX_OPEN_TAGS = 2_000
MAX_NESTED_TABLES = 20
# Each is three calls within each other, of the thousand that Python allows to all callers together.
MAX_DEPTH = 250
# Of one table: a page of a few kilobytes must not become one of megabytes.
MOST_REPEATS, LEAST_REPEATED_CELLS = 10, 5_000
MAX_ROWSPAN = 200
MAX_REPEATED_CHARACTERS = 300
_HEADING_TAGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_TABLE_PARTS = ("thead", "tbody", "tfoot", "tr", "td", "th", "caption", "colgroup", "col")
# The style "Title" in the HTML of Word and of Google Docs.
_TITLE_CLASSES = ("MsoTitle", "title")
_GOOGLE_REDIRECT = re.compile(r"^https?://www\.google\.com/url\?q=([^&\s]+)\S*")
# Navigation without the tag: by its role, and as Confluence exports path, author, table of contents and footer of each page.
_DROPPED_PARTS = '[role="navigation"], [role="contentinfo"], #breadcrumb-section, #main-content .toc-macro, #content > .page-metadata'
# The sign beside a heading that links to the heading itself, as Sphinx, MkDocs, Docusaurus and AnchorJS write it.
_PERMALINK_CLASSES = {"headerlink", "hash-link", "anchorjs-link", "header-anchor"}
# Text that would be a heading, a fence, a rule or the underline of a heading in Markdown.
_MARKUP = re.compile(r"^([ \t]*)(#{1,6}(?:\s|$)|`{3}|~{3}|(?:-{2,}|={2,})[ \t]*$)", re.MULTILINE)
_NO_MARKUP_IN = ("pre", "code", "table", *_HEADING_TAGS)
_BLOCK_TAGS = ("p", "div", "li", "dd", "dt", "blockquote", "section", "article", "main", "body", "[document]")
_DROPPED_TAGS = ("script", "style", "nav", "noscript", "template", "title", "select", "datalist")
# Blocks to a browser, of which the converter knows nothing.
_OTHER_BLOCK_TAGS = (
    *("aside", "footer", "header", "main", "center", "figure", "address", "fieldset", "form", "legend", "summary"),
    *("details", "hgroup", "search", "dialog"),
)
_OTHER_LIST_TAGS = ("menu", "dir")
_BOXED_TAGS = ("button", "label", "output")
_NOT_SHOWN = re.compile(r"(?:^|;)\s*display\s*:\s*none\b", re.IGNORECASE)
# What shows a hidden part: a tab, an accordion, a "read more".
_SHOWING_ATTRIBUTES = ("aria-controls", "href", "data-target", "data-bs-target")
# What is hidden directly behind them is what they show when they are clicked: nobody leaves a question alone.
_SHOWING_TAGS = ("button", "dt", *_HEADING_TAGS)


def html_to_markdown(html: str) -> tuple[str, str]:
    """Text in Markdown, and the title of the page (empty where it has none).

    Raises:
        Unreadable: tags are nested too deeply.
    """
    from bs4 import BeautifulSoup
    from bs4.element import CData, PreformattedString
    from markdownify import MarkdownConverter

    soup: Any = BeautifulSoup(html.replace("\r\n", "\n").replace("\r", "\n"), "html.parser")
    title = soup.title.get_text(" ") if soup.title else ""
    # The inner ones first: to take out a tag is to look for the end of all that is left in it.
    for tag in reversed((*soup.find_all(_DROPPED_TAGS), *soup.select(_DROPPED_PARTS))):
        tag.extract()
    for node in soup.find_all(string=True):
        if isinstance(node, PreformattedString) and not isinstance(node, CData):  # comments, doctype, <?xml ?>
            node.extract()
    _set_apart(soup)
    for image in soup.find_all("img"):
        if not image.get("src") or str(image["src"]).lstrip().lower().startswith("data:"):
            image.replace_with(str(image.get("alt") or ""))
    for link in soup.find_all("a", href=True):
        if _is_permalink(link):
            link.extract()
    for link in soup.find_all("a", href=_GOOGLE_REDIRECT):
        # Google Docs sends each link through its own address, with a time stamp: another text with each export.
        link["href"] = _GOOGLE_REDIRECT.sub(lambda found: unquote(found[1]), link["href"])
    for paragraph in soup.find_all("p", class_=_TITLE_CLASSES):
        if "MsoTitle" in paragraph["class"] or paragraph.find_parent("body", class_="doc-content"):
            paragraph.name = "h1"
    inside = [tag for tag in soup.find_all(list(_CLOSES)) if tag.parent.name in _CLOSES[tag.name]]
    # Nested so deeply, every step costs as many others; the page counts as unreadable soon.
    if len(inside) <= MAX_OPEN_TAGS:
        _close_tags(inside)
    if _is_deeper(soup, MAX_DEPTH):
        raise Unreadable(f"too deeply nested: the limit is {MAX_DEPTH} tags in each other; simplify it")
    if len(inside) <= MAX_OPEN_TAGS:
        # Before, what follows a hidden paragraph would stand in it.
        _drop_hidden(soup)
        for table in reversed(soup.find_all("table")):
            _plain_table(table)
    for node in soup.find_all(string=re.compile(r"\|")):
        if node.find_parent(("td", "th")):
            node.replace_with(node.replace("|", r"\|"))
    for node in soup.find_all(string=_MARKUP):
        if node.parent.name in _BLOCK_TAGS and node.find_parent(_NO_MARKUP_IN) is None:
            begins = node.previous_sibling is None or node.previous_sibling.name == "br"
            node.replace_with(_MARKUP.sub(functools.partial(_spoken_of, begins=begins), node))
    options: dict[str, Any] = {"heading_style": "atx", "bullets": "-", "table_infer_header": True}
    options |= dict.fromkeys(("escape_asterisks", "escape_underscores", "escape_misc"), False)
    converter = MarkdownConverter(**options)
    text = SURROGATE.sub("\ufffd", converter.convert_soup(soup))
    return re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", text).strip() + "\n", title


def _drop_hidden(soup: Any) -> None:
    """Drop what a browser does not show and nothing on the page can show, unless that is most of the page: a script shows it."""
    shown = {
        str(tag[name]).lstrip("#.")
        for name in _SHOWING_ATTRIBUTES
        for tag in soup.find_all(attrs={name: True})
        if name != "href" or str(tag[name]).startswith("#")
    }
    found = {id(tag): tag for tag in (*soup.find_all(hidden=True), *soup.find_all(style=_NOT_SHOWN))}
    hidden = {at: tag for at, tag in found.items() if not _may_be_shown(tag, shown)}
    outermost = [tag for tag in hidden.values() if not any(id(parent) in hidden for parent in tag.parents)]
    if hidden and 2 * sum(len(tag.get_text(strip=True)) for tag in outermost) <= len(soup.get_text(strip=True)):
        for tag in outermost:
            tag.extract()


def _may_be_shown(tag: Any, shown: Set[str]) -> bool:
    if tag.name in ("html", "body") or tag.get("role") == "tabpanel" or tag.get("hidden") == "until-found":
        return True
    if tag.name in _CLOSES and tag.find((*_HEADING_TAGS, "div", "table", "ul", "ol")):
        # Its end tag is missing: to a browser it ends before them.
        return True
    before = tag.find_previous_sibling()
    is_answer = before is not None and (
        before.name in _SHOWING_TAGS
        or any(map(before.has_attr, ("aria-expanded", "onclick")))
        or before.find("button") is not None
    )
    return is_answer or not shown.isdisjoint((tag.get("id"), *(tag.get("class") or ())))


def _set_apart(soup: Any) -> None:
    for tag in soup.find_all((*_OTHER_BLOCK_TAGS, *_OTHER_LIST_TAGS)):
        tag.name = "ul" if tag.name in _OTHER_LIST_TAGS else "div"
    for parent in {id(tag.parent): tag.parent for tag in soup.find_all(_BOXED_TAGS)}.values():
        # From behind and by position: a tag is looked for among all its siblings.
        for at in reversed(range(len(parent.contents))):
            tag = parent.contents[at]
            if tag.name not in _BOXED_TAGS:
                continue
            # A browser draws a box with room around it.
            if tag.next_sibling is not None and not re.match(r"\W", tag.next_sibling.get_text()):
                parent.insert(at + 1, " ")
            if tag.previous_sibling is not None and not re.search(r"\W$", tag.previous_sibling.get_text()):
                parent.insert(at, " ")


def _is_deeper(soup: Any, limit: int) -> bool:
    level = [soup]
    for _ in range(limit + 1):
        level = [child for tag in level for child in tag.children if child.name]
    return bool(level)


def _is_permalink(link: Any) -> bool:
    text, marked = link.get_text(strip=True), bool(_PERMALINK_CLASSES.intersection(link.get("class") or ()))
    says_nothing = not any(map(str.isalnum, text))
    heading = link.find_parent(_HEADING_TAGS)
    if heading is None:
        # Sphinx marks terms and captions with them too.
        return marked and bool(text) and says_nothing
    if not marked and not (says_nothing and str(link["href"]).startswith("#")):
        return False
    said = (string for string in heading.strings if string.strip())
    return any(all(parent is not link for parent in string.parents) for string in said)


def _spoken_of(found: re.Match[str], *, begins: bool) -> str:
    # What stands behind other text on its line is no markup anyway.
    return f"{found[1]}\\{found[2]}" if begins or found.start() else found[0]


def _close_tags(inside: list[Any]) -> None:
    """Take items and cells out of those before them: their end tags may be left out, of which the parser knows nothing."""
    for tag in inside:
        while tag.parent.name in _CLOSES[tag.name]:
            tag.parent.insert_after(tag)


def _plain_table(table: Any) -> None:
    """Make a table one that Markdown can show: a cell over several rows in each of them, no table in a cell.

    A table that only arranges a page (around headings, around another table in a single row or column, as a box around its
    only cell, or as columns of several paragraphs side by side) is none.
    """
    if len(table.find_parents("table", limit=MAX_NESTED_TABLES)) == MAX_NESTED_TABLES:
        return
    parts = [part for part in table.find_all(_TABLE_PARTS) if part.find_parent("table") is table]
    rows = [part.find_all(["td", "th"], recursive=False) for part in parts if part.name == "tr"]
    is_grid = len(rows) > 1 and any(len(row) > 1 for row in rows)
    if (
        (table.find("table") and not is_grid)
        or _is_box(rows)
        or any(_has_section(cell) for row in rows for cell in row)
    ):
        for part in (table, *parts):
            part.name = "div"
        return
    _repeat_over_rows(rows)
    for inner in table.find_all("table"):
        found = [
            [cell.get_text(" ", strip=True) for cell in row.find_all(["td", "th"])] for row in inner.find_all("tr")
        ]
        inner.replace_with("; ".join(", ".join(filter(None, row)) for row in found))


def _is_box(rows: list[list[Any]]) -> bool:
    cells = [cell for row in rows for cell in row]
    in_one_row = sum(map(bool, rows)) == 1
    return len(cells) == 1 or (in_one_row and any(len(cell.find_all(["p", "li"], limit=2)) > 1 for cell in cells))


def _has_section(cell: Any) -> bool:
    heading = cell.find(_HEADING_TAGS)
    return bool(heading) and heading.get_text(strip=True) != cell.get_text(strip=True)


def _repeat_over_rows(rows: list[list[Any]]) -> None:
    open_cells: dict[int, tuple[Any, int]] = {}
    left = max(LEAST_REPEATED_CELLS, MOST_REPEATS * sum(map(len, rows)))
    for number, row in enumerate(filter(None, rows)):
        column, at = 0, 0
        while at < len(row) or open_cells.get(column, (None, -1))[1] >= number:
            cell, last = open_cells.get(column, (None, -1))
            if last >= number:
                if not left:
                    return
                left -= 1
                cell = copy.copy(cell)
                if at:
                    row[at - 1].insert_after(cell)
                else:
                    row[0].insert_before(cell)
                row.insert(at, cell)
            else:
                cell = row[at]
                last = number + min(_span(cell, "rowspan"), MAX_ROWSPAN) - 1
                if last > number:
                    open_cells[column] = (copy.copy(cell), last)
                    if len(cell.get_text()) > MAX_REPEATED_CHARACTERS:
                        open_cells[column][0].clear()
            at += 1
            column += _span(cell, "colspan")


def _span(cell: Any, name: str) -> int:
    value = str(cell.get(name) or "")
    return max(1, int(value)) if value.isdecimal() and len(value) < 4 else 1
