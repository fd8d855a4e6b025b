"""Positions of points, lines and ticks in the report's figures, in percent of width and height (y downwards)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workflow_scripts.report.formatting import count, decimal
from workflow_scripts.report.results import ONCE, PER_CORPUS, EvaluationResult, LdsRow, method_name

POINTS_DRAWN = 600
ZERO_PLACE = 3.0


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its position in percent, and its label."""

    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A linear axis from `low` to `high`."""

    low: float
    high: float
    ticks: list[Tick]

    def place(self, value: float) -> float:
        """Return the position of a value, in percent from the low end."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter plot, with its interval from `low` to `high`; all positions in percent."""

    x: float
    y: float
    low: float
    high: float
    name: str
    main: bool


@dataclass(frozen=True)
class Scatter:
    """A scatter plot of LDS against a cost on a logarithmic axis.

    Parameters
    ----------
    title: name of the cost.
    x_ticks: ticks of its axis.
    y: axis of the LDS.
    points: the methods.
    front: their convex front, as SVG points.
    """

    title: str
    x_ticks: list[Tick]
    y: Axis
    points: list[Point]
    front: str


@dataclass(frozen=True)
class Bar:
    """A stacked bar of seconds.

    Parameters
    ----------
    parts: (name of the part, its seconds, its start and its width in percent of the longest bar); seconds are None
        where they aren't known, and such a part has no width.
    """

    parts: list[tuple[str, float | None, float, float]]

    @property
    def seconds(self) -> float | None:
        """The sum of the parts; None if one of them isn't known."""
        known = [seconds for _, seconds, _, _ in self.parts if seconds is not None]
        return sum(known) if len(known) == len(self.parts) else None


@dataclass(frozen=True)
class MethodCosts:
    """What a method costs for each new corpus and once, as bars.

    Parameters
    ----------
    name: the method's name.
    main: whether it is the main row's.
    per_corpus: embedding and scoring.
    once: fitting and the LM's warm-up.
    """

    name: str
    main: bool
    per_corpus: Bar
    once: Bar


@dataclass(frozen=True)
class Curve:
    """A curve over training steps.

    Parameters
    ----------
    title: name of the quantity.
    x: axis of the steps.
    y: axis of the quantity.
    raw: the curve before smoothing, as SVG points.
    line: the curve, as SVG points.
    best: (x, y, label) of the best value; None if none is marked.
    """

    title: str
    x: Axis
    y: Axis
    raw: str
    line: str
    best: tuple[float, float, str] | None


def linear_axis(low: float, high: float, ticks: int = 5) -> Axis:
    """Return an axis with round ends that contains both values, with about `ticks` ticks."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, digits) != step:
        digits += 1
    low, high = first * step, last * step
    marks = [
        Tick(round(100 * (index - first) / (last - first), 2), _mark(index * step, digits))
        for index in range(first, last + 1)
    ]
    return Axis(low, high, marks)


def _mark(value: float, digits: int) -> str:
    return decimal(value, digits) if digits else count(round(value)).replace("-", "−")


def lds_axis(result: EvaluationResult) -> Axis:
    """Return the axis of one evaluation's LDS, which contains zero, every interval and the ceiling."""
    values = [0.0] + [
        value
        for row in result.rows
        for value in (row.lds, row.ci_low, row.ci_high)
        if value is not None and not math.isnan(value)
    ]
    if result.ceiling is not None:
        values.append(result.ceiling)
    return linear_axis(min(values), max(values))


def cost_figures(result: EvaluationResult) -> list[Scatter]:
    """Return the plots of LDS against seconds and against bytes per example, where these were measured."""
    figures = [
        _scatter("Seconds to embed and score", result, "seconds"),
        _scatter("Bytes stored per training example", result, "bytes_per_example"),
    ]
    return [figure for figure in figures if figure.points]


def cost_bars(result: EvaluationResult) -> list[MethodCosts]:
    """Return the costs of each method, the one that embeds and scores fastest first; none if nothing was measured."""
    rows = [row for row in _one_per_method(result) if row.seconds is not None]
    longest = {
        parts: max((sum(row.parts[part] or 0.0 for part in parts) for row in rows), default=0.0)
        for parts in (PER_CORPUS, ONCE)
    }
    return [
        MethodCosts(
            name=method_name(row.method),
            main=row == result.main,
            per_corpus=_bar(row, PER_CORPUS, longest[PER_CORPUS]),
            once=_bar(row, ONCE, longest[ONCE]),
        )
        for row in sorted(rows, key=lambda row: row.seconds or 0.0)
    ]


def _bar(row: LdsRow, parts: Sequence[str], longest: float) -> Bar:
    placed, start = [], 0.0
    for part in parts:
        seconds = row.parts[part]
        width = 100 * (seconds or 0.0) / longest if longest else 0.0
        placed.append((part, seconds, round(start, 2), round(width, 2)))
        start += width
    return Bar(placed)


def _one_per_method(result: EvaluationResult) -> list[LdsRow]:
    """Return one row per method, the main row or the best, because a method's poolings cost the same."""
    rows: dict[str, LdsRow] = {}
    for row in ([result.main] if result.main else []) + result.rows:
        rows.setdefault(row.method, row)
    return list(rows.values())


def _scatter(title: str, result: EvaluationResult, cost: str) -> Scatter:
    rows = [row for row in _one_per_method(result) if getattr(row, cost) is not None and not math.isnan(row.lds)]
    positive = [getattr(row, cost) for row in rows if getattr(row, cost) > 0]
    free = len(positive) < len(rows)
    first = math.floor(math.log10(min(positive))) if positive else 0
    last = max(math.ceil(math.log10(max(positive))), first + 1) if positive else 1
    # A cost of zero has no place on a logarithmic axis: it is drawn left of it.
    start = 16.0 if free else 0.0

    def place(value: float) -> float:
        if value <= 0:
            return ZERO_PLACE
        return round(start + (100 - start) * (math.log10(value) - first) / (last - first), 2)

    every = max(1, math.ceil((last - first) / 5))
    ticks = [Tick(ZERO_PLACE, "0")] if free else []
    ticks += [Tick(place(10.0**power), f"{10.0**power:,.{max(0, -power)}f}") for power in range(first, last + 1, every)]
    y = lds_axis(result)
    points = [
        Point(
            x=place(getattr(row, cost)),
            y=100 - y.place(row.lds),
            low=100 - y.place(row.lds if row.ci_low is None else row.ci_low),
            high=100 - y.place(row.lds if row.ci_high is None else row.ci_high),
            name=method_name(row.method),
            main=row == result.main,
        )
        for row in rows
    ]
    # A cost of zero is infinitely far to the left on such an axis, so no line leads there.
    priced = [(point.x, point.y) for point, row in zip(points, rows, strict=True) if getattr(row, cost) > 0]
    front = convex_front(priced)
    # Names are placed in this order, while there is room.
    points.sort(key=lambda point: not point.main and (point.x, point.y) not in front)
    return Scatter(title, ticks, y, points, " ".join(f"{x:g},{y:g}" for x, y in front))


def convex_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the upper convex hull from the leftmost point to the highest, as they are drawn.

    Parameters
    ----------
    points: (x, y) of each, y downwards.
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and y >= hull[-1][1]:
            continue
        while len(hull) > 1 and _is_below(hull[-1], hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _is_below(point: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Return whether a point is on or below the line between two others; y is downwards."""
    (x, y), (left_x, left_y), (right_x, right_y) = point, left, right
    return (y - left_y) * (right_x - left_x) >= (right_y - left_y) * (x - left_x)


def training_curves(losses: Sequence[tuple[int, float]], validations: Sequence[tuple[int, float]]) -> list[Curve]:
    """Return the curves of the encoder's loss and of its validation LDS, with the best validation marked.

    Parameters
    ----------
    losses: (step, loss) of each step.
    validations: (step, validation LDS) of each validation.
    """
    curves = []
    if losses:
        curves.append(_curve("Ranking loss", losses, smooth=True, best=False))
    if validations:
        curves.append(_curve("Validation LDS", validations, smooth=False, best=True))
    return curves


def _curve(title: str, points: Sequence[tuple[int, float]], smooth: bool, best: bool) -> Curve:
    values = [value for _, value in points]
    x = linear_axis(min(0, points[0][0]), points[-1][0], ticks=4)
    y = linear_axis(min(values), max(values), ticks=4)
    reach = max(1, len(points) // 40) if smooth else 0
    means = list(zip((step for step, _ in points), _moving_mean(values, reach), strict=True))
    top = max(points, key=lambda point: point[1])
    mark = (x.place(top[0]), 100 - y.place(top[1]), f"best: {decimal(top[1])} at step {count(top[0])}")
    return Curve(
        title=title,
        x=x,
        y=y,
        raw=_svg_points(points, x, y) if smooth else "",
        line=_svg_points(means, x, y),
        best=mark if best else None,
    )


def _moving_mean(values: Sequence[float], reach: int) -> list[float]:
    """Return the mean of each value and `reach` neighbours on either side."""
    means = []
    for place in range(len(values)):
        near = values[max(0, place - reach) : place + reach + 1]
        means.append(sum(near) / len(near))
    return means


def _svg_points(points: Sequence[tuple[int, float]], x: Axis, y: Axis) -> str:
    drawn = points[:: max(1, len(points) // POINTS_DRAWN)]
    return " ".join(f"{x.place(step):g},{round(100 - y.place(value), 2):g}" for step, value in drawn)
