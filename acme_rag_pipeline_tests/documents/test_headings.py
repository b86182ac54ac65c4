"""Which lines of reStructuredText and AsciiDoc are headings, at which level, and what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.documents.headings import LONGEST_TITLE, headings

RST = """\
.. _top:

=============
Night porters
=============

:Author: Someone

Keys
====

Ask the :ref:`desk <desk>` first.

- an item
-----------

Lost ``keys`` and *cards*
-------------------------

.. note::

   Inner title
   ===========

=====  =====
Door   Code
=====  =====
A      12
=====  =====

----

1. Spare |keys|
---------------
text
====

Prose that is longer than its line
---

Doors
=====
"""

ASCIIDOC = """\
= Night {who}
:toc: left
:who: porters

== Keys [[keys]]

====
An example.
====

[source,sh]
----
== no heading
----

[#lost]
=== Lost `keys` and *cards*, see xref:desk.adoc#top[the desk] ===

....
Not
---
....

Spare keys
----------

NOTE: none
====

## Doors
"""


@pytest.mark.parametrize(
    ("format", "text", "found"),
    [
        (
            "rst",
            RST,
            [
                (1, "Night porters"),
                (2, "Keys"),
                (3, "Lost keys and cards"),
                (3, "1. Spare keys"),
                (2, "Doors"),
            ],
        ),
        (
            "asciidoc",
            ASCIIDOC,
            [
                (1, "Night porters"),
                (2, "Keys"),
                (3, "Lost keys and cards, see the desk"),
                (2, "Spare keys"),
                (2, "Doors"),
            ],
        ),
        ("text", RST, []),
    ],
)
def test_headings_and_their_levels(format: str, text: str, found: list[tuple[int, str]]) -> None:
    assert [(heading.level, heading.title) for heading in headings(text, format)] == found
    for windows in (text.replace("\n", "\r\n"), "\ufeff" + text):
        assert [(heading.level, heading.title) for heading in headings(windows, format)] == found


@pytest.mark.parametrize(
    ("format", "text", "held"),
    [
        ("rst", "====\nKeys\n====\n\ntext\n\nDoors\n-----\n", ["====\nKeys\n====\n", "Doors\n-----\n"]),
        ("rst", "text\n\n.. _k:\n.. index:: k\n\nKeys\n====\nmore\n", [".. _k:\n.. index:: k\n\nKeys\n====\n"]),
        ("asciidoc", "text\n\n[#k]\n[.lead]\n== Keys\nmore\n", ["[#k]\n[.lead]\n== Keys\n"]),
    ],
)
def test_a_heading_holds_its_adornment_and_the_targets_above_it(format: str, text: str, held: list[str]) -> None:
    assert [text[heading.start : heading.end] for heading in headings(text, format)] == held


def test_letters_that_are_two_columns_wide_need_a_longer_line() -> None:
    assert [h.title for h in headings("鍵\n==\n", "rst")] == ["鍵"]
    assert headings("鍵\n=\n", "rst") == []


def test_a_line_of_a_thousand_characters_is_no_title_and_one_without_words_neither() -> None:
    for long in ("* " * 500 + "*", "link:" * 200, "`" * 999 + "a"):
        assert headings(f"{long}\n{'=' * len(long)}\n", "rst") == []
        assert headings(f"== {long}\n\na{long}\n{'=' * (len(long) + 1)}\n", "asciidoc") == []
    assert headings("== [[id]]\n\nlink:page[]\n-----------\n", "asciidoc") == []


def test_attributes_of_attributes_cost_no_time() -> None:
    [found] = headings(f":x: {'ab _c ' * 3000}\n\n= {'{x}' * 160}\n", "asciidoc")
    assert found.title.startswith("ab _c ab _c")
    assert len(found.title) <= LONGEST_TITLE


LINES = st.sampled_from(["====", "----", "Keys", "== Keys", "", "*", "= ", "````", ".. x", "  in", "[[a]]", "\ufeff"])


@given(
    st.one_of(st.text(max_size=200), st.lists(LINES, max_size=30).map("\n".join)), st.sampled_from(["rst", "asciidoc"])
)
def test_headings_lie_in_the_text_in_order(text: str, format: str) -> None:
    position = 0
    for heading in headings(text, format):
        assert position <= heading.start < heading.end <= len(text)
        assert 1 <= heading.level <= 6
        assert heading.title == " ".join(heading.title.split())
        position = heading.end
