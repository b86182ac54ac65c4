"""Small SVG pictures for the evaluation report: crisp at any size, coloured by the page's style sheet, no script.

Every function returns markup whose text is escaped; positions are SVG user units, which the page shows as pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

STRIP_WIDTH, STRIP_HEIGHT, STRIP_MARGIN = 280, 26, 14
CHART_WIDTH, CHART_HEIGHT = 344, 224
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40


@dataclass(frozen=True)
class Scale:
    """A linear map from values to positions, with the ticks that fit it."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Position of a value, kept inside the picture."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.end - self.start), 2)


@dataclass(frozen=True)
class Series:
    """Points of one line, ``tone`` being a colour class of the style sheet."""

    label: str
    points: Sequence[tuple[float, float]]
    tone: str
    dots: bool = False


def scale(values: Sequence[float], start: float, end: float, steps: int = 4, at_least: float = 0.02) -> Scale:
    """Fit a scale with round ticks around the finite values; ``at_least`` is the smallest range shown."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if high - low < at_least:
        low, high = (low + high - at_least) / 2, (low + high + at_least) / 2
    rough = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(step * n, 10) for n in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def strip_scale(values: Sequence[float], steps: int = 4) -> Scale:
    """Scale that all strips of one table share."""
    return scale(values, STRIP_MARGIN, STRIP_WIDTH - STRIP_MARGIN, steps)


def strip_axis(axis: Scale, text: Callable[[float], str]) -> Markup:
    """Tick labels above a column of strips."""
    labels = [
        Markup('<text x="{}" y="14" text-anchor="middle" class="tick">{}</text>').format(axis(tick), text(tick))
        for tick in axis.ticks
    ]
    return _svg(STRIP_WIDTH, 18, "", labels, kind="strip")


def interval_strip(
    axis: Scale, mean: float, low: float, high: float, reference: float | None, tone: str, spoken: str
) -> Markup:
    """A dot with its interval on the shared scale; ``reference`` draws a dashed line (the champion, or no change)."""
    middle = STRIP_HEIGHT / 2
    parts = [_line(axis(tick), 0, axis(tick), STRIP_HEIGHT, "grid") for tick in axis.ticks]
    if reference is not None:
        parts.append(_line(axis(reference), 0, axis(reference), STRIP_HEIGHT, "reference"))
    if math.isfinite(low) and math.isfinite(high):
        parts.append(_line(axis(low), middle, axis(high), middle, f"whisker {tone}"))
        parts += [_line(axis(end), middle - 4, axis(end), middle + 4, f"whisker {tone}") for end in (low, high)]
    parts.append(Markup('<circle cx="{}" cy="{}" r="4.5" class="dot {}"/>').format(axis(mean), middle, tone))
    return _svg(STRIP_WIDTH, STRIP_HEIGHT, spoken, parts, kind="strip")


def bar_strip(axis: Scale, value: float, tone: str, spoken: str) -> Markup:
    """A bar from 0 to the value on the shared scale."""
    parts = [_line(axis(tick), 0, axis(tick), STRIP_HEIGHT, "grid") for tick in axis.ticks]
    left, right = sorted((axis(0.0), axis(value)))
    bar = Markup('<rect x="{}" y="8" width="{}" height="{}" rx="2" class="bar {}"/>')
    parts.append(bar.format(left, round(max(1.5, right - left), 2), STRIP_HEIGHT - 16, tone))
    parts.append(_line(axis(0.0), 0, axis(0.0), STRIP_HEIGHT, "reference"))
    return _svg(STRIP_WIDTH, STRIP_HEIGHT, spoken, parts, kind="strip")


def line_chart(series: Sequence[Series], x_title: str, y_title: str, spoken: str, decimals: int = 3) -> Markup:
    """Lines over a common horizontal axis; empty markup when no series has a point."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup("")
    x_axis, y_axis = _axes([x for s in drawn for x, _ in s.points], [y for s in drawn for _, y in s.points])
    parts = _frame(x_axis, y_axis, x_title, y_title, decimals)
    for one in drawn:
        places = [(x_axis(x), y_axis(y)) for x, y in one.points]
        if len(places) > 1:
            path = " ".join(f"{x},{y}" for x, y in places)
            parts.append(Markup('<polyline points="{}" class="line {}"/>').format(path, one.tone))
        if one.dots or len(places) == 1:
            parts += [Markup('<circle cx="{}" cy="{}" r="4" class="dot {}"/>').format(*at, one.tone) for at in places]
    return _svg(CHART_WIDTH, CHART_HEIGHT, spoken, parts)


def histogram(
    edges: Sequence[float],
    groups: Sequence[tuple[Sequence[int], str]],
    x_title: str,
    spoken: str,
    highest: float = 0.0,
) -> Markup:
    """Overlaid bars of shares for groups of ``(counts, tone)`` over common bin edges, each group adding up to 1.

    ``highest`` is a share that the axis reaches at least, so that pictures side by side have one scale.
    """
    shares = [([count / max(1, sum(counts)) for count in counts], tone) for counts, tone in groups]
    x_axis, y_axis = _axes(list(edges), [0.0, highest, *(share for group, _ in shares for share in group)])
    parts = _frame(x_axis, y_axis, x_title, "share", 2)
    bar = Markup('<rect x="{}" y="{}" width="{}" height="{}" class="area {}"/>')
    for group, tone in shares:
        for share, left, right in zip(group, edges, edges[1:], strict=False):
            if share > 0:
                x, y = x_axis(left), y_axis(share)
                size = (round(max(0.5, x_axis(right) - x - 0.5), 2), round(y_axis(0.0) - y, 2))
                parts.append(bar.format(x, y, *size, tone))
    return _svg(CHART_WIDTH, CHART_HEIGHT, spoken, parts)


def _axes(xs: Sequence[float], ys: Sequence[float]) -> tuple[Scale, Scale]:
    fitted = scale(xs, _LEFT, CHART_WIDTH - _RIGHT, steps=5, at_least=1e-6)
    low, high = min(xs), max(xs)
    inside = tuple(tick for tick in fitted.ticks if low - 1e-9 <= tick <= high + 1e-9)
    # Horizontally the data end where the frame ends; only heights are rounded outwards to ticks.
    x_axis = Scale(low, high if high > low else low + 1, _LEFT, CHART_WIDTH - _RIGHT, inside)
    return x_axis, scale(ys, CHART_HEIGHT - _BOTTOM, _TOP, at_least=1e-3)


def _frame(x_axis: Scale, y_axis: Scale, x_title: str, y_title: str, decimals: int) -> list[Markup]:
    parts = [_line(_LEFT, y_axis(tick), CHART_WIDTH - _RIGHT, y_axis(tick), "grid") for tick in y_axis.ticks]
    # Labels that are rounded more than the ticks are would repeat or lie.
    decimals = max(decimals, *(len(f"{tick:.10f}".rstrip("0").partition(".")[2]) for tick in y_axis.ticks))
    label = Markup('<text x="{}" y="{}" text-anchor="{}" class="tick">{}</text>')
    parts += [label.format(_LEFT - 8, y_axis(t) + 4, "end", f"{t:.{decimals}f}") for t in y_axis.ticks]
    parts += [label.format(x_axis(t), CHART_HEIGHT - _BOTTOM + 17, "middle", f"{t:g}") for t in x_axis.ticks]
    title = Markup('<text x="{}" y="{}" text-anchor="{}" class="axis">{}</text>')
    parts.append(title.format((_LEFT + CHART_WIDTH - _RIGHT) / 2, CHART_HEIGHT - 5, "middle", x_title))
    turned = Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle" class="axis">{}</text>')
    parts.append(turned.format((_TOP + CHART_HEIGHT - _BOTTOM) / 2, y_title))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, style)


def _svg(width: float, height: float, spoken: str, parts: Sequence[Markup], kind: str = "chart") -> Markup:
    role = Markup('role="img" aria-label="{}"').format(spoken) if spoken else Markup('aria-hidden="true"')
    opening = Markup('<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" {}>')
    return opening.format(kind, width, height, width, height, role) + Markup("").join(parts) + Markup("</svg>")
