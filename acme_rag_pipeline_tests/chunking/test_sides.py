"""Units of small collections are sections, and what stands beside a section never moves it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.chunking.sides import units
from acme_rag_pipeline.setting_groups import EvaluationSettings

SETTINGS = EvaluationSettings()
HEADING = st.sampled_from(["Scope", "Who", "How", "When", "Annex"])
# The sections of one document: first a part under its title, then further ones of the first level.
UNDER_TITLE = st.lists(st.tuples(HEADING, HEADING).map(lambda path: ("Leave", *path)), min_size=1, max_size=8)
FURTHER = st.lists(st.tuples(st.sampled_from(["Appendix", "History"]), HEADING), max_size=4)


def test_sections_are_units_of_a_small_collection_and_documents_of_a_large_one() -> None:
    paths = [(), ("Leave",), ("Leave", "Who", "Managers"), ("Leave", "Who"), ("Appendix",), ("Appendix", "Forms")]
    placed = units("leave.md", paths, 3, SETTINGS)
    assert placed == [
        "leave.md",
        "leave.md # Leave",
        "leave.md # Leave # Who",
        "leave.md # Leave # Who",
        "leave.md # Appendix",
        "leave.md # Appendix",
    ]
    assert units("leave.md", paths, SETTINGS.section_units_below, SETTINGS) == ["leave.md"] * len(paths)


@given(UNDER_TITLE, FURTHER, FURTHER)
def test_no_section_that_comes_or_goes_moves_another(
    under_title: list[tuple[str, ...]], before: list[tuple[str, ...]], after: list[tuple[str, ...]]
) -> None:
    then = dict(zip([*under_title, *before], units("leave.md", [*under_title, *before], 3, SETTINGS), strict=True))
    now = dict(zip([*under_title, *after], units("leave.md", [*under_title, *after], 3, SETTINGS), strict=True))
    assert all(now[path] == unit for path, unit in then.items() if path in now)
