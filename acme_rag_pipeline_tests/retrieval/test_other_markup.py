"""Documents in reStructuredText from the file to what a reader sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline_tests.increments import oracle

PORTERS = """\
.. _top:

=============
Night porters
=============

Lost keys
---------

A porter who loses the key of the archive calls the locksmith before midnight and writes the number of the seal into the
book of the lodge, which lies below the lamp.
"""


def test_a_section_of_restructuredtext_is_found_under_its_headings(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    (documents / "porters.rst").write_text(PORTERS, encoding="utf-8")
    oracle.run(store, settings_for(), oracle.REFRESH)
    shown = CliRunner().invoke(main, ["--store", str(store.root), "search", "lost key of the archive", "-k", "1"])
    assert shown.exit_code == 0
    place, heading, preview, *_ = shown.output.splitlines()
    assert place.split()[1].startswith("porters.rst:")
    assert heading.strip() == "Night porters > Lost keys"
    # Of lines below headings nothing is left to read.
    assert "Lost keys A porter who loses the key" in preview
    assert "----" not in preview
