"""Inline SVG that stretches with the page: lines in their own coordinates, dots and labels in percent."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from dropforge_core.report.figures import number, ticks
from dropforge_core.report.markup import Markup, tag

POINTS_AT_MOST: Final = 400
"""More are averaged: a page stays small however long a training was."""
Point = tuple[float, float]


class Scale(NamedTuple):
    """A linear map of low..high to 0..100 percent."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return 50.0
        return round(100 * (value - self.low) / (self.high - self.low), 3)


class Mark(NamedTuple):
    """One variant's estimate with its interval."""

    label: str
    css: str
    """`base`, `champion` or `candidate`."""
    value: float
    lower: float | None
    upper: float | None


def loss_chart(train: Sequence[Point], held_out: Sequence[Point], best: Point | None) -> Markup:
    """Training and held-out loss over optimiser steps.

    Args:
        train: (step, loss), thinned to `POINTS_AT_MOST` by averaging neighbours.
        held_out: (step, loss), every point drawn.
        best: the checkpoint that was kept.
    """
    thin = thinned(train)
    steps = [x for x, _ in (*thin, *held_out)]
    losses = [y for _, y in (*thin, *held_out)]
    top = max(losses) * 1.06
    x, y = Scale(0, max(steps) or 1), Scale(0, top or 1)
    x_ticks, y_ticks = ticks(0, x.high, 6), ticks(0, y.high, 5)
    grid = [
        tag("line", x1="0", x2="100%", y1=f"{100 - y(t)}%", y2=f"{100 - y(t)}%", class_="grid")
        for t in y_ticks
    ]
    inner = tag(
        "svg",
        _line(thin, x, y, "train"),
        _line(held_out, x, y, "held-out"),
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
    )
    dots = [_dot(point, x, y, "held-out", 3.5) for point in held_out]
    kept = _dot(best, x, y, "best", 6.5) if best else None
    told = (
        f"Training loss from {number(thin[0][1])} to {number(thin[-1][1])}" if thin else "No training loss"
    ) + (f", held-out loss from {number(held_out[0][1])} to {number(held_out[-1][1])}" if held_out else "")
    plot = tag(
        "svg",
        tag("title", f"{told}, over {number(x.high)} steps."),
        grid,
        inner,
        dots,
        kept,
        role="img",
        aria_label=f"{told}, over {number(x.high)} steps.",
        class_="plot",
    )
    return tag(
        "div",
        tag(
            "div",
            [tag("span", number(t), style=f"bottom:{y(t)}%") for t in y_ticks],
            class_="y-axis",
            aria_hidden="true",
        ),
        plot,
        tag(
            "div",
            [tag("span", number(t), style=f"left:{x(t)}%") for t in x_ticks],
            class_="x-axis",
            aria_hidden="true",
        ),
        class_="chart",
    )


def interval_chart(marks: Sequence[Mark], low: float, high: float, told: str) -> Markup:
    """One row a variant: the interval as a bar, the estimate as a dot, on one scale."""
    scale, rows = Scale(low, high), len(marks)
    shapes: list[Markup] = [
        tag("line", x1=f"{scale(t)}%", x2=f"{scale(t)}%", y1="0", y2="100%", class_="grid")
        for t in ticks(low, high, 4)
    ]
    for index, mark in enumerate(marks):
        height = f"{round(100 * (index + 0.5) / rows, 2)}%"
        left = scale(max(low, low if mark.lower is None else mark.lower))
        right = scale(min(high, high if mark.upper is None else mark.upper))
        shapes += [
            tag("line", x1=f"{left}%", x2=f"{right}%", y1=height, y2=height, class_=f"interval {mark.css}"),
            tag("circle", cx=f"{scale(mark.value)}%", cy=height, r="5", class_=f"dot {mark.css}"),
        ]
    return tag(
        "svg",
        tag("title", told),
        shapes,
        role="img",
        aria_label=told,
        class_="intervals",
        style=f"height:{26 * rows}px",
    )


class Measured(NamedTuple):
    """A number with its bounds, and the threshold that it must clear."""

    value: float
    lower: float | None
    upper: float | None
    threshold: float
    at_most: bool = False
    """Whether the number must stay below the threshold instead of above it."""


def span_of(found: Iterable[Measured], also: Iterable[float] = (0.0,)) -> tuple[float, float]:
    """From the lowest to the highest number that is drawn, with room at both ends."""
    finite = [
        number
        for one in found
        for number in (one.value, one.threshold, one.lower, one.upper)
        if number is not None
    ]
    finite += also
    reach = (max(finite) - min(finite)) or 1.0
    return min(finite) - 0.1 * reach, max(finite) + 0.1 * reach


def difference_chart(found: Measured, told: str, span: tuple[float, float] | None = None) -> Markup:
    """A number with its bounds, the threshold that it must clear, the side where it must not be, and zero.

    Args:
        found: what is drawn.
        told: the same in words.
        span: the scale, where several charts share one.
    """
    value, lower, upper, margin, at_most = found
    low, high = span or span_of([found])
    scale = Scale(low, high)
    forbidden = (scale(margin), 100.0) if at_most else (0.0, scale(margin))
    left, right = scale(low if lower is None else lower), scale(high if upper is None else upper)
    return tag(
        "svg",
        tag("title", told),
        tag(
            "rect",
            x=f"{forbidden[0]}%",
            y="0",
            width=f"{round(max(0.0, forbidden[1] - forbidden[0]), 3)}%",
            height="100%",
            class_="forbidden",
        ),
        tag("line", x1=f"{scale(0)}%", x2=f"{scale(0)}%", y1="0", y2="100%", class_="grid")
        if low <= 0 <= high
        else None,
        tag("line", x1=f"{scale(margin)}%", x2=f"{scale(margin)}%", y1="0", y2="100%", class_="margin"),
        tag("line", x1=f"{left}%", x2=f"{right}%", y1="50%", y2="50%", class_="interval candidate"),
        tag("circle", cx=f"{scale(value)}%", cy="50%", r="5", class_="dot candidate"),
        role="img",
        aria_label=told,
        class_="difference",
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `POINTS_AT_MOST` points: neighbours are averaged, the first and the last stay where they are."""
    if len(points) <= POINTS_AT_MOST:
        return list(points)
    inner, places = points[1:-1], POINTS_AT_MOST - 2
    edges = [round(index * len(inner) / places) for index in range(places + 1)]
    groups = [inner[a:b] for a, b in itertools.pairwise(edges)]
    means = [(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups if g]
    return [points[0], *means, points[-1]]


def _line(points: Sequence[Point], x: Scale, y: Scale, css: str) -> Markup | None:
    if len(points) < 2:
        return None
    path = " ".join(f"{x(step):g},{100 - y(loss):g}" for step, loss in points)
    return tag("polyline", points=path, class_=f"curve {css}", vector_effect="non-scaling-stroke")


def _dot(point: Point, x: Scale, y: Scale, css: str, radius: float) -> Markup:
    return tag(
        "circle", cx=f"{x(point[0])}%", cy=f"{round(100 - y(point[1]), 3)}%", r=radius, class_=f"dot {css}"
    )
