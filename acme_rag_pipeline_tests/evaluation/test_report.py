from __future__ import annotations

import itertools
import math
import re
import struct
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser

import numpy as np
import pytest

from acme_rag_pipeline.evaluation.charts import Series, line_chart, scale, strip_axis, strip_scale
from acme_rag_pipeline.evaluation.forgetting import Forgetting
from acme_rag_pipeline.evaluation.gate import ArmScores, Decision, GateSettings, compare, decide
from acme_rag_pipeline.evaluation.intervals import Interval, mean_interval
from acme_rag_pipeline.evaluation.metrics import METRICS, PRIMARY
from acme_rag_pipeline.evaluation.picture import report_picture
from acme_rag_pipeline.evaluation.query_change import FoundEvidence, Passage, QueryChange
from acme_rag_pipeline.evaluation.report import (
    CHANGES_SHOWN,
    ArmRow,
    DrawnToQueries,
    Funnel,
    PairCount,
    QuerySetReport,
    Report,
    SamplePair,
    Similarities,
    SweepPoint,
    TrainingPoint,
    clean,
    render_report,
)

HOSTILE = (
    "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> {{ 7*7 }} {% raw %} </style></title> &amp; $x_{"
    "\x00\x1b\u202e"
)
ARMS = {
    "bm25": ("full text only", 0.43),
    "base": ("all-MiniLM-L6-v2 as published", 0.512),
    "base_hybrid": ("base fused with full text", 0.561),
    "fine_tuned": ("tuned on these documents", 0.583),
    "fine_tuned_hybrid": ("tuned, fused with full text", 0.612),
}
SUBJECTS = ["travel card", "parental leave", "records retention", "conference budget", "access to the data room"]


def query_set(name: str, queries: int, units: int, seed: int, decides: bool = False) -> tuple[QuerySetReport, Decision]:
    rng = np.random.default_rng(seed)
    ids = [f"q{i:03d}" for i in range(queries)]
    unit_of = {i: f"handbook/chapter-{n % units:02d}.md" for n, i in enumerate(ids)}
    labels = list(unit_of.values())
    easy = rng.normal(size=queries) + rng.normal(0, 0.7, units)[np.arange(queries) % units]
    scores, rows = {}, []
    for arm, (description, mean) in ARMS.items():
        latent = easy + rng.normal(0, 0.55, queries)
        order = np.argsort(np.argsort(latent)) / (queries - 1)
        values = np.clip(np.where(order < (1 - mean) * 0.9, 0.0, np.where(order > 1 - mean * 0.75, 1.0, 0.43)), 0, 1)
        scores[arm] = ArmScores(arm, dict(zip(ids, values.tolist(), strict=True)))
        metrics = {PRIMARY: mean_interval(values.tolist(), labels)}
        for metric, factor in zip(METRICS[1:], (0.93, 0.72, 1.08, 1.15, 1.21), strict=True):
            metrics[metric] = mean_interval(np.clip(values * factor, 0, 1).tolist(), labels)
        rows.append(ArmRow(arm, metrics, description))
    segments = {
        "query_style": dict(zip(ids, rng.choice(["question", "keywords", "situation"], queries).tolist(), strict=True)),
        "folder": {i: f"handbook/{SUBJECTS[n % 5].replace(' ', '-')}" for n, i in enumerate(ids)},
        "documents": dict(zip(ids, rng.choice(["new", "old"], queries, p=[0.12, 0.88]).tolist(), strict=True)),
    }
    others = [scores[arm] for arm in ARMS if arm not in ("base", "bm25")]
    decision = decide(scores["base"], others, unit_of, segments, GateSettings(), "golden", "documents")
    changes = [
        QueryChange(
            query_id=i,
            query=f"What do I do about the {SUBJECTS[n % 5]} when my manager is away ({n})?",
            before_score=scores["base"].ndcg[i],
            after_score=scores["fine_tuned_hybrid"].ndcg[i],
            before=Passage(
                f"handbook/chapter-{(n + 3) % units:02d}.md", "Offices › Opening hours", "The front desk is " * 40, 1
            ),
            after=Passage(
                unit_of[i], "Absence › Substitutes", f"Your substitute approves the {SUBJECTS[n % 5]}. " * 9, 1, True
            ),
            same_first=n % 7 == 0,
            evidence=[
                FoundEvidence(
                    unit_of[i], f"Your substitute approves the {SUBJECTS[n % 5]} while the manager is away.", 6, 3, 9
                ),
                *[FoundEvidence("handbook/all-rules.md", "", None, 1 + n % 20, 2)] * (n % 3),
            ],
            base_score=0.25 if n % 2 else None,
        )
        for n, i in enumerate(ids)
    ]
    part = QuerySetReport(
        name=name,
        queries=queries,
        units=units,
        arms=rows,
        versus_champion=decision.comparisons,
        versus_base=compare(scores["base"], others, unit_of, GateSettings()),
        segments=decision.segments,
        changes=changes,
        readers="fine_tuned_hybrid",
        versus_readers=compare(
            scores["fine_tuned_hybrid"],
            [scores[arm] for arm in ARMS if arm != "fine_tuned_hybrid"],
            unit_of,
            GateSettings(),
        ),
        unit_noun="documents",
        note="Questions that people wrote." if decides else "Questions that the generator wrote for unseen documents.",
        decides=decides,
    )
    return part, decision


def sample_report() -> Report:
    """A report with every part filled, as a run on a handbook would give."""
    rng = np.random.default_rng(3)
    golden, decision = query_set("golden", 240, 62, 1, decides=True)
    edges = np.linspace(-0.2, 1.0, 31).round(3).tolist()

    def counts(mean: float, spread: float, size: int) -> list[int]:
        return np.histogram(rng.normal(mean, spread, size), edges)[0].tolist()

    return Report(
        headline="fine_tuned_hybrid replaces base: the right passage now stands near the top more often.",
        verdict=decision.verdict,
        champion="base",
        champion_digest="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        candidate="fine_tuned_hybrid",
        candidate_digest="9f1c0b7a64d2e85590a1f3bb17c2d4e6f8091a2b3c4d5e6f708192a3b4c5d6e7",
        created_at=datetime(2026, 11, 21, 22, 5, tzinfo=UTC),
        query_sets=[golden, query_set("held_out", 410, 40, 2)[0]],
        reason=decision.reason,
        corpus={"documents": 214, "chunks": 1893, "training_pairs": 4120, "characters": 2_140_311},
        training=[
            TrainingPoint(
                s,
                s / 128,
                0.4 + 1.9 * math.exp(-s / 60) + 0.05 * rng.normal(),
                0.5 + 0.09 * (1 - math.exp(-s / 80)) if s % 64 == 0 else None,
            )
            for s in range(0, 257, 4)
        ],
        sweep=[
            SweepPoint(a, v, a == 0.75, w)
            for a, v, w in ((0, 0.512, 0), (0, 0.531, 0.2), (0.25, 0.549, 0.2), (0.5, 0.574, 0.2), (0.75, 0.588, 0.2))
        ],
        funnel=Funnel(
            raw=[
                PairCount("openai", "question", 1893),
                PairCount("openai", "keywords", 1893),
                PairCount("openai", "situation", 1894),
                PairCount("curated", "question", 96),
            ],
            dropped={
                "round trip fails": 911,
                "near-duplicate question": 402,
                "near a test passage": 259,
                "copied from the passage": 84,
            },
            kept={"train": 3466, "validation": 243, "test": 411},
            query_words={"1 to 3": 204, "4 to 6": 1411, "7 to 9": 2005, "10 or more": 500},
            overlap={"0": 310, "to 0.2": 2100, "to 0.4": 1210, "to 1": 500},
            coverage="84 of 85 documents and 612 of 630 chunks have a kept pair",
        ),
        samples=[
            SamplePair(
                origin,
                style,
                f"How long do I keep {word} receipts?",
                f"Receipts for {word} are kept for six years. " * 5,
                f"finance/{word}.md",
            )
            for origin, style in (("openai", "question"), ("curated", "question"))
            for word in ("travel", "training", "equipment")
        ],
        similarities=[
            Similarities("base", edges, counts(0.55, 0.14, 240), counts(0.58, 0.11, 240), -0.031),
            Similarities("candidate", edges, counts(0.68, 0.11, 240), counts(0.47, 0.09, 240), 0.212),
        ],
        stages={
            "documents": 4.2,
            "chunks": 2.9,
            "base_index": 61.0,
            "synthetic_pairs": 412.0,
            "training_set": 37.5,
            "fine_tuned_model": 1290.0,
            "evaluation_report": 55.0,
        },
        tokens={"calls": 1893, "prompt_tokens": 1_203_344, "completion_tokens": 201_882},
        lineage={
            "documents": "data version 8c1e…",
            "training_set": "fingerprint 77ab…",
            "configuration": "full, lr 5e-5, 2 epochs, batch 32, seed 0",
            "code": "acme_rag_pipeline 0.1.0",
        },
        trail={
            "document": "handbook/chapter-03.md",
            "its SHA-256": "41ab…",
            "pair": "77f0…",
            "table": "passages, version 9",
        },
        forgetting=Forgetting(0.931, 0.872, Interval(-0.059, -0.085, -0.033, 120, 120), 120),
        caveats=[
            "The held-out questions are synthetic evidence: their generator also wrote the training questions.",
            "Validation questions chose the interpolation, so they are not counted here.",
        ],
    )


class Page(HTMLParser):
    """Collects elements, the addresses they point to, and open elements at the end."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.stack: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render_report(report)


def assert_harmless(html: str) -> Page:
    page = Page(html)
    assert page.stack == []
    assert not {"script", "img", "iframe", "object", "embed", "link", "a", "form", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in {"src", "href", "action"}]
    assert not re.findall(r"url\(|@import|https?:", html)
    assert (page.tags.count("style"), page.tags.count("title")) == (1, 1)
    return page


def test_the_page_is_well_formed_and_asks_for_nothing(html: str) -> None:
    assert_harmless(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_the_page_says_what_was_decided_and_measured(report: Report, html: str) -> None:
    text = " ".join(" ".join(Page(html).text).split())
    main = report.main_set
    assert main is not None
    assert main.name == "golden"
    assert report.headline in text
    assert report.reason in text
    assert report.candidate_digest in text
    for arm in main.arms:
        assert arm.arm in text
        assert all(f"{interval.mean:.3f}" in text for interval in arm.metrics.values())
    for part in ("Golden questions", "Held-out questions", "Biggest losses", "Dropped, by reason", "Loss", "Lineage"):
        assert part in text
    assert "right minus best wrong passage: −0.031 with the base, +0.212 with the candidate" in text
    assert "The candidate forgets: the loss lies between 0.033 and 0.085." in text
    assert all(value in text for value in report.trail.values())
    assert "<b>1\u202f893</b> chunks" in html
    assert "21 min 30 s" in text
    assert all(caveat in text for caveat in report.caveats)


def test_the_biggest_changes_are_shown_each_way(report: Report, html: str) -> None:
    main = report.main_set
    assert main is not None
    assert len(main.gains) == CHANGES_SHOWN
    assert min(c.gain for c in main.gains) >= max(c.gain for c in main.changes if c not in main.gains)
    assert all(c.gain < 0 for c in main.losses)
    assert [c.gain for c in main.losses] == sorted(c.gain for c in main.losses)
    assert all(c.query in html for c in [*main.gains, *main.losses])


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ([(6, 3)], "at rank 6 → 3"),
        ([(None, 2)], "not among the first 20 → rank 2"),
        ([(12, None)], "at rank 12 → not among the first 20"),
        ([(None, None)], "not among the first 20 → not among the first 20"),
        ([(1, 1), (14, None)], "at ranks 1, 14 → rank 1"),
        ([(1, 1), (None, 4)], "at rank 1 → ranks 1, 4"),
        ([(n, 1) for n in (9, 8, 7, 6, 5)], "at ranks 5, 6, 7, 8 … → rank 1"),
        ([], ""),
    ],
)
def test_where_the_evidence_went_is_said_in_ranks(ranks: list[tuple[int | None, int | None]], said: str) -> None:
    change = QueryChange("q", "?", 0.1, 0.5, evidence=[FoundEvidence("a.md", "quote", *pair) for pair in ranks])
    assert change.moved == said


def test_a_change_shows_all_its_evidence_what_the_base_found_and_first_hits_that_are_the_same() -> None:
    wrong = Passage("b.md", "", "about something else", 1)
    change = QueryChange(
        "q",
        "who pays?",
        0.356,
        0.5,
        wrong,
        wrong,
        same_first=True,
        evidence=[FoundEvidence("a.md", "We pay.", 6, 3, 9), FoundEvidence("whole.md", "", 15, None)],
        base_score=0.301,
    )
    part = QuerySetReport("golden", 3, 1, [], changes=[change])
    text = " ".join(" ".join(assert_harmless(render_report(minimal(query_sets=[part]))).text).split())
    assert "evidence at ranks 6, 15 → rank 3 0.356 → 0.500" in text
    assert "Evidence in a.md · at rank 6 → 3 We pay." in text
    assert "1 more piece of evidence In whole.md , the whole document · at rank 15 → not among the first 20" in text
    assert "The base model: nDCG@10 0.301, evidence at rank 9." in text
    assert text.count("about something else") == 1
    assert "After: fine_tuned nDCG@10 0.500, evidence at rank 3 Its first hit is the same passage." in text
    assert "rank 1: not the evidence" in text
    other = replace(change, same_first=False, base_score=None)
    text = render_report(minimal(query_sets=[replace(part, changes=[other])]))
    assert text.count("about something else") == 2
    assert "The base model" not in text


def test_the_page_says_what_readers_get_and_which_arm_is_ahead_of_it(report: Report, html: str) -> None:
    text = " ".join(" ".join(Page(html).text).split())
    for part in report.query_sets:
        assert not any(row.significant for row in part.versus_readers)
    assert text.count("Every other arm against what readers get, fine_tuned_hybrid") == 2
    assert text.count("No arm is significantly ahead of it.") == 2
    assert html.count("readers get this") == 2
    main = report.main_set
    assert main is not None
    ahead = replace(main, readers="base", versus_readers=main.versus_champion)
    assert any(row.significant for row in ahead.versus_readers)
    html = render_report(replace(report, query_sets=[ahead], ahead="On these, fine_tuned_hybrid is ahead."))
    assert "No arm is significantly ahead of it." not in html
    assert '<p class="ahead">On these, fine_tuned_hybrid is ahead.</p>' in html


def test_hostile_text_stays_text(report: Report) -> None:
    """Every string of the report at once, nested ones and mapping keys too, becomes hostile."""

    def poison(value: object) -> object:
        if isinstance(value, str):
            return f"{value}{HOSTILE}"
        if isinstance(value, dict):
            return {poison(key) if key not in METRICS else key: poison(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [poison(item) for item in value]
        if hasattr(value, "__dataclass_fields__"):
            return replace(value, **{f.name: poison(getattr(value, f.name)) for f in fields(value)})
        return value

    poisoned = poison(report)
    assert isinstance(poisoned, Report)
    html = render_report(poisoned)
    page = assert_harmless(html)
    assert not re.search("[\x00\x1b\u202e]", html)
    text = "".join(page.text)
    assert text.count("<script>alert(1)</script>") > 100
    assert "{{ 7*7 }}" in text
    assert ">49<" not in html
    assert report_picture(poisoned).startswith(b"\x89PNG")


def test_a_question_as_long_as_a_document_does_not_flood_the_page(report: Report) -> None:
    main = report.main_set
    assert main is not None
    mail = "and one thing more " * 5_000
    heading = replace(main.changes[0].after or Passage("a.md", "", ""), heading=mail)
    changes = [replace(change, query=mail, after=heading) for change in main.changes]
    samples = [replace(sample, query=mail) for sample in report.samples]
    long = replace(report, query_sets=[replace(main, changes=changes)], samples=samples, trail={"question": mail})
    text = "".join(assert_harmless(render_report(long)).text)
    assert len(text) < len(mail)
    assert "and one thing more and" in text


def test_a_lone_surrogate_can_be_written_as_utf8(report: Report) -> None:
    render_report(replace(report, headline="broken \udcff text")).encode("utf-8")


def test_ordinary_direction_marks_are_dropped_and_those_that_reverse_are_shown() -> None:
    assert clean("(\u05e9\u05dc\u05d5\u05dd)\u200f, done\u200e") == "(\u05e9\u05dc\u05d5\u05dd), done"
    assert clean("a\u202eb\u2066c") == "a\ufffdb\ufffdc"


def test_ordinary_names_of_groups_do_not_break_inside_a_word(html: str) -> None:
    (rule,) = re.findall(r"[.]indent \{ padding[^}]*\}", html)
    assert "overflow-wrap:break-word" in rule
    assert "min-width:8em" in rule


def test_a_long_name_of_a_group_pushes_no_number_out_of_sight(report: Report) -> None:
    main = report.main_set
    assert main is not None
    for letters, breaks in ((120, True), (20, False)):
        rows = [replace(row, value="x" * letters) for row in main.segments]
        page = render_report(replace(report, query_sets=[replace(main, segments=rows)]))
        assert (f'class="indent long">{"x" * letters}' in page) is breaks
    (rule,) = re.findall(r"[.]indent[.]long \{[^}]*\}", page)
    assert "overflow-wrap:anywhere" in rule


def test_who_cannot_see_the_page_gets_the_same(html: str) -> None:
    """Headings skip no level, every column has a name, what scrolls can be reached by keyboard, pictures say their numbers."""
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", html)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "<th></th>" not in html
    assert html.count('class="scroll"') == html.count('class="scroll" tabindex="0" role="region" aria-label="') > 4
    (spoken,) = set(re.findall(r'aria-label="(Similarities, candidate[^"]*)"', html))
    assert re.search(r"right passages lie above 0\.\d\d, .*wrong ones above 0\.\d\d; mean margin \+0\.\d{3}", spoken), (
        spoken
    )


@pytest.mark.parametrize(("which", "card"), [(0, "#ffffff"), (1, "#171e29")], ids=["light", "dark"])
def test_muted_marks_stand_out_from_the_page(html: str, which: int, card: str) -> None:
    """At least 3 to 1 (WCAG 2.2, 1.4.11)."""

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(luminance(c) for c in (re.findall(r"--muted:(#\w{6})", html)[which], card))
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_a_set_that_chose_the_weights_is_called_so(report: Report) -> None:
    main = report.main_set
    assert main is not None
    titled = replace(main, name="held_out", title="Validation questions (chose the weights)")
    for part, said in (
        (titled, "<h2>Validation questions (chose the weights)"),
        (replace(titled, title=""), "<h2>Held-out questions"),
    ):
        assert said in render_report(replace(report, query_sets=[part]))


def test_on_paper_a_long_name_of_a_group_pushes_no_column_off_the_sheet(html: str) -> None:
    (rule,) = re.findall(r"[.]indent \{[^}]*\}", html.partition("@media print")[2])
    assert "nowrap" not in rule
    assert "overflow-wrap:anywhere" in rule


@pytest.mark.parametrize(
    ("queries", "units", "said"),
    [(1, 1, "1 question over 1 document section."), (2, 2, "2 questions over 2 document sections.")],
)
def test_numbers_and_their_nouns_agree(queries: int, units: int, said: str) -> None:
    part = QuerySetReport("golden", queries, units, [], unit_noun="document sections")
    assert said in " ".join("".join(Page(render_report(minimal(query_sets=[part]))).text).split())


def minimal(**parts: object) -> Report:
    arguments: dict = {
        "headline": "base stays: there are no judged questions to compare with.",
        "verdict": "kept: cannot tell",
        "champion": "base",
        "champion_digest": "a" * 64,
        "candidate": "fine_tuned",
        "candidate_digest": "b" * 64,
        "created_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "query_sets": [],
    }
    return Report(**(arguments | parts))


def test_parts_without_data_are_left_out() -> None:
    html = render_report(minimal())
    assert_harmless(html)
    headings = re.findall(r"<h2>(.*?)<", html)
    assert headings == ["Lineage"]
    assert "nan" not in "".join(Page(html).text).lower()


@pytest.mark.parametrize("part", [f.name for f in fields(Report) if f.default is not f.default_factory])
def test_any_optional_part_can_be_missing(report: Report, part: str) -> None:
    empty: object = (
        None
        if part in ("funnel", "forgetting")
        else 0
        if part == "units_needed"
        else ""
        if part == "reason"
        else {}
        if part in ("corpus", "stages", "tokens", "lineage", "trail")
        else ()
    )
    assert_harmless(render_report(replace(report, **{part: empty})))
    assert_harmless(render_report(minimal(**{part: getattr(report, part)})))


@pytest.mark.parametrize(("units", "verdict"), [(3, "cannot tell"), (6, "worse")])
def test_an_arm_is_called_worse_only_where_there_are_enough_units(units: int, verdict: str) -> None:
    ids = [f"q{n}" for n in range(units)]
    base = ArmScores("base", dict.fromkeys(ids, 1.0))
    worse = ArmScores("fine_tuned", {i: 0.3 + 0.01 * n for n, i in enumerate(ids)})
    (row,) = compare(base, [worse], {i: i for i in ids}, GateSettings())
    assert row.high < 0
    part = QuerySetReport("golden", units, units, [], versus_champion=[row])
    page = render_report(minimal(query_sets=[part], units_needed=6))
    assert re.findall(r'<td class="soft verdict">(.*?)</td>', page) == [verdict]


def test_the_choice_of_weights_names_the_whitening_only_where_there_is_one() -> None:
    plain = minimal(sweep=[SweepPoint(0.0, 0.5), SweepPoint(0.5, 0.6, True)])
    both = minimal(sweep=[*plain.sweep[:1], SweepPoint(0.0, 0.55, False, 0.2), SweepPoint(0.5, 0.6, True, 0.2)])
    assert "chosen: 0.5, whitening 0.2" in render_report(both)
    assert "the base without whitening" in render_report(both)
    assert "chosen: 0.5</span>" in render_report(plain)
    assert "whitening" not in render_report(plain)


def test_the_choice_of_weights_shows_the_questions_that_made_it() -> None:
    plain = minimal(sweep=[SweepPoint(0.0, 0.5), SweepPoint(0.5, 0.6, True)])
    chosen = minimal(
        sweep=[SweepPoint(0.0, 0.5), SweepPoint(1.0, 0.7, False, 0, 0.55), SweepPoint(0.5, 0.6, True, 0, 0.58)]
    )
    said = "people's questions and headings, which chose the share"
    assert said in render_report(chosen).replace("&#39;", "'")
    assert said not in render_report(plain).replace("&#39;", "'")
    assert render_report(chosen).count('class="dot gain"') == 2


@pytest.mark.parametrize(
    ("drawn", "said"),
    [
        (
            DrawnToQueries(61.3, True, 0.5691, 0.5793),
            "(61 s): nDCG@10 of validation by people's questions and headings 0.579, before 0.569; kept.",
        ),
        (DrawnToQueries(2.0, False, 0.5, 0.4), "before 0.500; taken back."),
        (DrawnToQueries(2.0, True), "of its passages (2 s); kept."),
        (
            DrawnToQueries(2.0, True, 0.5, 0.6, 0.7, 0.65),
            "(2 s): nDCG@10 of validation 0.650, before 0.700; by people's questions and headings 0.600, before 0.500; kept.",
        ),
        (DrawnToQueries(2.0, False, None, None, 0.7, 0.2), "nDCG@10 of validation 0.200, before 0.700; taken back."),
        (DrawnToQueries(0.0, False, broke_down=True), "taken back, since its loss was no number any more."),
    ],
)
def test_the_second_training_is_told(drawn: DrawnToQueries, said: str) -> None:
    assert said in render_report(minimal(drawn=drawn)).replace("&#39;", "'")
    assert "drawn to" not in render_report(minimal())


def test_edge_values_are_shown_without_noise() -> None:
    unknown = Interval(0.4, -math.inf, math.inf, 1, 3)
    near_one = Interval(0.99, 0.95, 1.03, 4, 8)
    arms = [
        ArmRow("base", {PRIMARY: unknown}),
        ArmRow("fine_tuned", {PRIMARY: near_one, "mrr@10": near_one}),
        ArmRow("bm25", {}),
    ]
    part = QuerySetReport("golden", 3, 1, arms, changes=[QueryChange("q", "same", 0.5, 0.5)])
    one = minimal(query_sets=[part], training=[TrainingPoint(0, 0.0, 1.0)], sweep=[SweepPoint(0.0, 0.5, True)])
    html = render_report(one)

    text = "".join(assert_harmless(html).text)
    assert "1.030" not in text
    assert "inf" not in text
    assert "same" not in text
    assert report_picture(one).startswith(b"\x89PNG")
    assert report_picture(minimal()).startswith(b"\x89PNG")


def test_moments_are_shown_in_universal_time() -> None:
    local = datetime(2026, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=5)))
    assert "2026-01-01 20:30 UTC" in render_report(minimal(created_at=local))


def test_the_picture_is_a_small_png_and_leaves_no_global_state(report: Report) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    png = report_picture(report)
    width, height = struct.unpack(">II", png[16:24])
    assert len(png) < 50_000
    assert (width, height) > (500, 200)
    assert plt.get_fignums() == before
    assert png == report_picture(report)


@pytest.mark.parametrize("values", [[0.1, 0.9], [0.5], [-3.2, 12.7], [0.4123, 0.4124], [], [math.inf, 0.2]])
def test_scales_hold_their_values_with_few_round_ticks(values: list[float]) -> None:
    axis = scale(values, 0, 100)
    finite = [value for value in values if math.isfinite(value)]

    assert all(axis.low <= value <= axis.high for value in finite)
    assert 2 <= len(axis.ticks) <= 7
    assert axis(axis.low) == 0
    assert axis(axis.high) == 100
    assert axis(-1e9) == 0


def test_the_axis_of_strips_is_labelled_where_its_ticks_are() -> None:
    axis = strip_scale([0.12, 0.48])
    labels = re.findall(r'x="([\d.]+)"[^>]*>([^<]+)</text>', strip_axis(axis, str))

    assert [(float(x), float(text)) for x, text in labels] == [(axis(tick), tick) for tick in axis.ticks]


@pytest.mark.parametrize("highest", [0.0007, 0.011, 0.1, 0.09, 3.0])
def test_the_labels_of_a_small_range_tell_its_ticks_apart(highest: float) -> None:
    chart = line_chart([Series("loss", [(0, 0.0), (1, highest)], "accent")], "step", "loss", "", decimals=2)
    labels = [float(text) for text in re.findall(r'text-anchor="end" class="tick">([^<]+)<', chart)]
    steps = {round(b - a, 9) for a, b in itertools.pairwise(labels)}
    assert len(steps) == 1
    assert steps.pop() > 0


def test_a_chart_without_points_is_no_chart() -> None:
    assert line_chart([Series("loss", [], "accent")], "step", "loss", "") == ""
