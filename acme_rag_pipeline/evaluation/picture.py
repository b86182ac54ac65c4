"""The evaluation as one small PNG for the Dagster UI: the arms, the similarities and the training curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.report import Report, Similarities, TrainingPoint, clean, snippet
from acme_rag_pipeline.evaluation.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACCENT, INK, MUTED, GAIN = "#2563eb", "#334155", "#94a3b8", "#13795b"
PANEL_HEIGHT = 2.5
COLORS = 64


def report_picture(report: Report) -> bytes:
    """Draw the deciding query set's arms with their intervals, and below them what the report has of the rest.

    Returns:
        A PNG below 50 KB.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    shown = report.main_set
    arms = [arm for arm in shown.arms if PRIMARY in arm.metrics] if shown else []
    panels: list[Similarities | list[TrainingPoint]] = list(report.similarities)
    if report.training:
        panels.append(list(report.training))
    top = 1.3 + 0.42 * max(1, len(arms))
    height = top + (PANEL_HEIGHT if panels else 0)
    figure = Figure(figsize=(8.4, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [top, PANEL_HEIGHT] if panels else [top]
    grid = figure.add_gridspec(len(ratios), max(1, len(panels)), height_ratios=ratios)
    _draw_arms(figure.add_subplot(grid[0, :]), report)
    bars = None
    for place, panel in enumerate(panels):
        if isinstance(panel, Similarities):
            # The eye compares bars of one scale only.
            bars = figure.add_subplot(grid[1, place], sharey=bars)
            _draw_similarities(bars, panel)
        else:
            _draw_training(figure.add_subplot(grid[1, place]), panel)
    drawn, target = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    # The picture travels inside each run's metadata: few colours make it a third as large.
    Image.open(drawn).convert("RGB").quantize(COLORS).save(target, format="png", optimize=True)
    return target.getvalue()


def _draw_arms(axes: Axes, report: Report) -> None:
    shown = report.main_set
    rows = [(arm.arm, arm.metrics[PRIMARY]) for arm in shown.arms if PRIMARY in arm.metrics] if shown else []
    for place, (name, interval) in enumerate(reversed(rows)):
        color = {report.candidate: ACCENT, report.champion: INK}.get(name, MUTED)
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            axes.plot([max(0, interval.low), min(1, interval.high)], [place, place], color=color, linewidth=2)
        axes.plot([interval.mean], [place], "o", color=color, markersize=7)
        axes.annotate(f"{interval.mean:.3f}", (interval.mean, place), (0, 7), textcoords="offset points", ha="center")
        if name == report.champion:
            axes.axvline(interval.mean, color=MUTED, linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(range(len(rows)), [_plain(name) for name, _ in reversed(rows)])
    axes.set_ylim(-0.6, max(1, len(rows)) - 0.2)
    axes.set_xlabel(f"{PRIMARY} with 95 % interval")
    if shown is not None:
        scope = f"{counted(shown.queries, 'queries')} over {counted(shown.units, shown.unit_noun)}"
        axes.set_title(_plain(f"{report.verdict} ({shown.name.replace('_', ' ')}: {scope})", 90), fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


def _draw_similarities(axes: Axes, panel: Similarities) -> None:
    highest = 0.0
    for counts, color, label in (
        (panel.others, INK, "best wrong passage"),
        (panel.own, GAIN, "right passage"),
    ):
        total = max(1, sum(counts))
        shares = [count / total for count in counts]
        highest = max(highest, *shares)
        axes.stairs(shares, list(panel.edges), fill=True, alpha=0.45, color=color, label=label)
    axes.set_title(_plain(f"{panel.label}: margin {panel.margin:+.3f}".replace("-", "−"), 60), fontsize=9)
    _finish_panel(axes, "cosine to the question", "share")
    # Room for the legend above the bars.
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.35 * highest))
    axes.legend(fontsize=7, frameon=False)


def _draw_training(axes: Axes, points: list[TrainingPoint]) -> None:
    def line(where: Any, name: str, color: str, marker: str) -> None:
        known = [(p.step, getattr(p, name)) for p in points if getattr(p, name) is not None]
        where.plot([step for step, _ in known], [value for _, value in known], marker, color=color, markersize=4)

    axes.set_title("training", fontsize=9)
    line(axes, "loss", INK, "-")
    _finish_panel(axes, "step", "loss")
    if any(point.validation_ndcg is not None for point in points):
        right = axes.twinx()
        line(right, "validation_ndcg", ACCENT, "o-")
        right.set_ylabel(f"validation {PRIMARY}", fontsize=8, color=ACCENT)
        right.tick_params(labelsize=7, colors=ACCENT)
        right.spines[["top", "left"]].set_visible(False)


def _finish_panel(axes: Axes, x_title: str, y_title: str) -> None:
    axes.set_xlabel(x_title, fontsize=8)
    axes.set_ylabel(y_title, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str, limit: int = 40) -> str:
    """Text for a picture: short enough to leave room, and no dollar sign that would start a formula."""
    return snippet(clean(text), limit).replace("\ufffd", "").replace("$", r"\$")
