"""The evaluation report: one self-contained HTML page for people.

Everything that comes from documents, questions or models is hostile text: the template escapes all of it, the page
carries a content security policy that forbids scripts and every request, and control characters are removed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from acme_rag_pipeline.evaluation.comparison import Comparison, SegmentRow, percent
from acme_rag_pipeline.evaluation.forgetting import Forgetting
from acme_rag_pipeline.evaluation.intervals import Interval
from acme_rag_pipeline.evaluation.metrics import METRICS, PRIMARY
from acme_rag_pipeline.evaluation.query_change import QueryChange
from acme_rag_pipeline.evaluation.words import noun

CHANGES_SHOWN = 15
CHANGES_OPEN = 5
SAMPLES_SHOWN = 12
SNIPPET_CHARACTERS = 480
LONG_NAME = 40

# C0 and C1 controls but tab and line breaks, and the marks that reverse the reading direction of what follows. The plain
# direction marks U+200E and U+200F stand in ordinary Arabic and Hebrew texts and reverse nothing: they only go.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_DIRECTION_MARKS = re.compile("[\u200e\u200f]")


@dataclass(frozen=True)
class ArmRow:
    """An arm's metrics with their intervals; ``description`` says in a few words what the arm is."""

    arm: str
    metrics: Mapping[str, Interval]
    description: str = ""


@dataclass(frozen=True)
class QuerySetReport:
    """The comparison on one set of queries.

    Attributes:
        name: ``golden``, ``held_out``, or ``judged`` for any other set.
        queries: Number of queries.
        units: Number of units they come from.
        arms: A row per arm.
        versus_champion: The gate's comparisons, or those it would have made.
        versus_base: The same against the base model.
        segments: Segment rows of all arms; the candidate's are shown first.
        changes: All queries, in any order; the biggest gains and losses are shown.
        readers: The arm that readers get after the decision; empty where none of these is it.
        versus_readers: Every other arm against it.
        unit_noun: What the units are.
        note: A remark on the set, for instance who wrote its questions.
        decides: Whether the verdict rests on this set.
        title: What its questions are called, where the name does not say it.
    """

    name: str
    queries: int
    units: int
    arms: Sequence[ArmRow]
    versus_champion: Sequence[Comparison] = ()
    versus_base: Sequence[Comparison] = ()
    segments: Sequence[SegmentRow] = ()
    changes: Sequence[QueryChange] = ()
    readers: str = ""
    versus_readers: Sequence[Comparison] = ()
    unit_noun: str = "units"
    note: str = ""
    decides: bool = False
    title: str = ""

    @property
    def gains(self) -> list[QueryChange]:
        """The queries that gain most, best first."""
        return sorted((c for c in self.changes if c.gain > 0), key=lambda c: (-c.gain, c.query_id))[:CHANGES_SHOWN]

    @property
    def losses(self) -> list[QueryChange]:
        """The queries that lose most, worst first."""
        return sorted((c for c in self.changes if c.gain < 0), key=lambda c: (c.gain, c.query_id))[:CHANGES_SHOWN]


@dataclass(frozen=True)
class TrainingPoint:
    """A moment of training; what was not measured at it is None."""

    step: int
    epoch: float
    loss: float | None = None
    validation_ndcg: float | None = None


@dataclass(frozen=True)
class SweepPoint:
    """nDCG@10 on validation at a share of tuned weights, with a whitening or without (0).

    0 is the base, 1 the tuned weights, and above 1 lies past them. `unlike_training` is nDCG@10 by people's questions and
    headings, where these chose the share.
    """

    share: float
    validation_ndcg: float
    chosen: bool = False
    whitening: float = 0.0
    unlike_training: float | None = None


@dataclass(frozen=True)
class DrawnToQueries:
    """The second training, in which passages are drawn to their queries.

    Attributes:
        seconds: it took.
        kept: False where the model of before was taken back.
        before: nDCG@10 by people's questions and headings of validation, None without enough of them.
        after: the same, with it.
        validation_before: nDCG@10 of all of validation, None without enough of it.
        validation_after: the same, with it.
        broke_down: the loss was no number any more.
    """

    seconds: float
    kept: bool
    before: float | None = None
    after: float | None = None
    validation_before: float | None = None
    validation_after: float | None = None
    broke_down: bool = False


@dataclass(frozen=True)
class PairCount:
    """Raw pairs of one origin and style."""

    origin: str
    style: str
    pairs: int


@dataclass(frozen=True)
class Funnel:
    """From raw pairs to kept ones: ``dropped`` by reason, ``kept`` by side.

    Of the kept ones ``query_words`` counts the lengths of the queries and ``overlap`` the shares of their words that the
    passage has too; ``coverage`` says how many documents and chunks have a pair.
    """

    raw: Sequence[PairCount]
    dropped: Mapping[str, int]
    kept: Mapping[str, int]
    query_words: Mapping[str, int] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    coverage: str = ""


@dataclass(frozen=True)
class SamplePair:
    """A training pair as an example of its origin."""

    origin: str
    style: str
    query: str
    passage: str
    doc_path: str


@dataclass(frozen=True)
class Similarities:
    """Cosine of queries to their evidence (``own``) and to the best wrong passage (``others``) for one model.

    Attributes:
        label: The model, or the moment.
        edges: Bin edges, common to both and to every other model shown.
        own: Counts per bin.
        others: Counts per bin.
        margin: Mean over queries of right minus best wrong; below 0 the wrong passage is the nearer one.
    """

    label: str
    edges: Sequence[float]
    own: Sequence[int]
    others: Sequence[int]
    margin: float = 0.0

    @property
    def spoken(self) -> str:
        """What the picture shows, for who cannot see it."""
        right, wrong = (_middle(self.edges, counts) for counts in (self.own, self.others))
        return (
            f"Similarities, {self.label}: half of the right passages lie above {right:.2f}, half of the best wrong ones above "
            f"{wrong:.2f}; mean margin {self.margin:+.3f}"
        )


@dataclass(frozen=True)
class Report:
    """All that the page shows; empty parts are left out.

    ``champion`` and ``candidate`` are arm names, ``candidate`` being the arm that the verdict is about. ``headline`` is
    the verdict in one sentence, ``reason`` what more there is to say. ``corpus`` and ``tokens`` are labelled counts,
    ``stages`` wall seconds by stage, each of its last run that had something to do, ``lineage`` labelled versions and fingerprints, ``trail`` those of one example from its
    document to the index. ``champion_label`` and ``candidate_label`` say what the two are where they are something else,
    ``adjusted`` whether the intervals of comparisons allow for the number of arms, ``units_needed`` the fewest units with
    which an arm can be called worse, ``ahead`` which arm is significantly ahead of what readers get, in words.
    """

    headline: str
    verdict: str
    champion: str
    champion_digest: str
    candidate: str
    candidate_digest: str
    created_at: datetime
    query_sets: Sequence[QuerySetReport]
    reason: str = ""
    ahead: str = ""
    corpus: Mapping[str, int] = field(default_factory=dict)
    training: Sequence[TrainingPoint] = ()
    sweep: Sequence[SweepPoint] = ()
    drawn: DrawnToQueries | None = None
    funnel: Funnel | None = None
    samples: Sequence[SamplePair] = ()
    similarities: Sequence[Similarities] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, str] = field(default_factory=dict)
    trail: Mapping[str, str] = field(default_factory=dict)
    forgetting: Forgetting | None = None
    caveats: Sequence[str] = ()
    champion_label: str = "champion"
    candidate_label: str = "candidate"
    adjusted: bool = True
    units_needed: int = 0

    @property
    def main_set(self) -> QuerySetReport | None:
        """The query set the verdict rests on, else the first one."""
        return next((s for s in self.query_sets if s.decides), next(iter(self.query_sets), None))


def render_report(report: Report) -> str:
    """Render the page: one HTML document without scripts, links to elsewhere or anything to load."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from acme_rag_pipeline.evaluation import charts

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"charts": charts, "METRICS": METRICS, "PRIMARY": PRIMARY, "SAMPLES_SHOWN": SAMPLES_SHOWN}
    environment.globals |= {"CHANGES_OPEN": CHANGES_OPEN, "LONG_NAME": LONG_NAME}
    environment.globals |= {"ticklabel": lambda tick: f"{tick:.10g}".replace("-", "−"), "zip": zip}
    environment.filters |= {
        "score": lambda value: _number(value, ".3f"),
        "signed": lambda value: _number(value, "+.3f").replace("-", "−"),
        "percent": lambda value: _number(100 * value, "+.1f").replace("-", "−") + " %" if value is not None else "–",
        "confidence": lambda level: f"{percent(level)}\u00a0%",
        "p": lambda value: "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}",
        "count": lambda value: f"{value:,}".replace(",", "\u202f"),
        "noun": noun,
        "seconds": _seconds,
        "snippet": snippet,
        "moment": lambda at: (at.astimezone(UTC) if at.tzinfo else at).strftime("%Y-%m-%d %H:%M UTC"),
        "words": lambda name: str(name).replace("_", " "),
    }
    return clean(environment.get_template("report.html.jinja").render(report=report))


def clean(text: str) -> str:
    """Replace control characters and marks that reverse the reading direction, and drop plain direction marks."""
    return _UNSAFE.sub("\ufffd", _DIRECTION_MARKS.sub("", text))


def _middle(edges: Sequence[float], counts: Sequence[int]) -> float:
    """The middle of the bin that holds the median."""
    half, seen = sum(counts) / 2, 0
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        seen += count
        if seen >= half:
            return (left + right) / 2
    return edges[0]


def _number(value: float | None, form: str) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = format(value, form)
    return text if float(text) else format(0.0, form)


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def snippet(text: str, limit: int = SNIPPET_CHARACTERS) -> str:
    """The beginning of a text on one line, cut at a word."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit].rsplit(" ", 1)[0] + " …"
