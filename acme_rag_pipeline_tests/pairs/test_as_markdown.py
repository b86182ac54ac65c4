"""What the embedded generator reads of reStructuredText and AsciiDoc."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.pairs import offline
from acme_rag_pipeline.pairs.as_markdown import as_markdown
from acme_rag_pipeline.pairs.corpus_statistics import CorpusStatistics
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.plain_text import blocks

RST = """\
.. _night-keys:

Night keys
==========

.. versionadded:: 5.4

:Owner: the desk

Ask :ref:`the porter <porter>` or see :ref:`lost-keys` for :class:`~house.Key` and `our list`_::

    key.open()

.. note:: Keys are counted
   every Friday.

.. image:: /a.png
   :alt: a ring

.. code-block:: python
   :linenos:

   return key

Then leave.

.. a comment
   of two lines

.. [1] A footnote.
.. |ring| replace:: the ring
"""

ASCIIDOC = """\
[#night-keys]
== Night keys
:toc:

.How to ask
Ask xref:porter.adoc#top[the porter], see <<lost-keys>> or <<list,our list>>.

[source,python]
----
key.open()
----

NOTE: Keys are counted.

====
Then leave.
====

// a comment
image::a.png[a ring]
+
* one
"""


@pytest.mark.parametrize(
    ("format", "text", "read"),
    [
        (
            "rst",
            RST,
            [
                ("heading", "Night keys"),
                ("prose", "Owner: the desk"),
                ("prose", "Ask the porter or see lost keys for Key and our list:"),
                ("code", "    key.open()"),
                ("prose", "Keys are counted every Friday."),
                ("code", "   return key"),
                ("prose", "Then leave."),
                ("prose", "A footnote."),
                ("prose", "the ring"),
            ],
        ),
        (
            "asciidoc",
            ASCIIDOC,
            [
                ("heading", "Night keys"),
                ("prose", "How to ask Ask the porter, see lost keys or our list."),
                ("code", "key.open()"),
                ("prose", "Keys are counted."),
                ("prose", "Then leave."),
                ("item", "one"),
            ],
        ),
    ],
)
def test_a_reader_sees_the_words_and_not_the_markup(format: str, text: str, read: list[tuple[str, str]]) -> None:
    assert [(block.kind, block.text.strip("\n")) for block in blocks(as_markdown(text, format))] == read


def test_the_rest_of_a_block_of_code_is_no_prose() -> None:
    text = (
        "class Migration(migrations.Migration):\n    dependencies = [\n        ('yourapp', '0001_initial'),\n    ]\n\n"
        "    You can also undo it by name.\n\nThen start the server.\n"
    )
    read = [(block.kind, block.text.strip()) for block in blocks(as_markdown(text, "rst"))]
    assert [kind for kind, _ in read] == ["code", "prose", "prose"]
    assert read[1:] == [("prose", "You can also undo it by name."), ("prose", "Then start the server.")]
    # Something that is explained: indented, and no code.
    said = "The key of the :setting:`DATABASES` setting.\n\n    It is ``None`` by default (see below).\n"
    assert {block.kind for block in blocks(as_markdown(said, "rst"))} == {"prose"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (".. code-block:: console\n   :caption: Set a=b\n\n   pip install acme\n", [("code", "pip install acme")]),
        (".. image:: a.png\n   :target: foo(bar)\n\nText.\n", [("prose", "Text.")]),
        (".. method:: Model.save()\n\n   It saves.\n", [("prose", "Model.save()"), ("prose", "It saves.")]),
        (
            "The default is debug=False.\n\n   It may change.\n",
            [("prose", "The default is debug False."), ("prose", "It may change.")],
        ),
    ],
)
def test_what_begins_a_passage_is_not_taken_for_the_rest_of_code(text: str, read: list[tuple[str, str]]) -> None:
    assert [(block.kind, block.text.strip()) for block in blocks(as_markdown(text, "rst"))] == read


def test_other_formats_stay_as_they_are() -> None:
    for format in ("markdown", "text", "html", "pdf", "docx", None):
        assert as_markdown(RST, format) == RST


def test_the_ending_of_the_document_says_how_it_is_read() -> None:
    written = {}
    for path in ("keys.rst", "keys.txt"):
        passage = Passage("c", path, "Night keys", ("Night keys",), RST)
        statistics = CorpusStatistics.from_passages([passage])
        written[path] = offline.render(passage, statistics, offline.OfflineParameters())
    assert "code-block" not in written["keys.rst"]
    assert "code-block" in written["keys.txt"]


LINES = st.sampled_from(
    ["Keys", "====", ".. note::", ".. code::", "  in", "    deep::", "::", "----", "[source]", ":a: b", "", "``x``", "<<a>>", "`b`_", "|"]
)  # fmt: skip


@given(
    st.one_of(st.text(max_size=200), st.lists(LINES, max_size=30).map("\n".join)), st.sampled_from(["rst", "asciidoc"])
)
def test_any_text_is_read(text: str, format: str) -> None:
    assert as_markdown(text, format) == as_markdown(text, format)
    blocks(as_markdown(text, format))


@pytest.mark.parametrize("format", ["rst", "asciidoc"])
@pytest.mark.parametrize(
    "unit", [":ref:`", "`a ", "<<", "xref:a[", ".. |", "::\n ", "----\n", ".. a::\n", "[[a]]\n", "\n", "= a\n"]
)
def test_hostile_repetition_takes_linear_time(format: str, unit: str) -> None:
    # Twenty thousand characters are what is read of a passage; with a quadratic pattern this would not end.
    as_markdown(unit * (20_000 // len(unit)), format)
