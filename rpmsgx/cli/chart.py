"""Bar charts as SVG, by hand: a chart library would cost more than all the rest of this package."""

from __future__ import annotations

import math
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WIDTH, LEFT, RIGHT = 860, 250, 100  # of the picture; the labels' share, the values'
ROW, BAR = 24, 14
COLOURS = {True: "#16a34a", False: "#94a3b8"}  # those that the chart is about, and the others
STYLE = 'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#0f172a"'


class Bar(NamedTuple):
    """A bar up to `median`, with a whisker from `low` to `high`."""

    label: str
    low: float
    median: float
    high: float
    ours: bool = True


class Group(NamedTuple):
    """Bars under a title, all on one scale."""

    title: str
    unit: str
    bars: Sequence[Bar]


def svg(title: str, notes: Sequence[str], groups: Sequence[Group]) -> str:
    """The picture. Each group has a scale of its own, from 0; a value says its unit."""
    y = 34
    body = [f'<text x="20" y="{y}" font-size="17" font-weight="bold">{escape(title)}</text>']
    for group in groups:
        y += 38
        body.append(f'<text x="20" y="{y}" font-weight="bold">{escape(group.title)}</text>')
        y += 10
        body += _bars(group, y)
        y += ROW * len(group.bars)
    for note in notes:
        y += 20
        body.append(f'<text x="20" y="{y}" font-size="11" fill="#475569">{escape(note)}</text>')
    y += 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" {STYLE}>',
        f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bars(group: Group, top: int) -> Iterator[str]:
    scale = (WIDTH - LEFT - RIGHT) / (max((bar.high for bar in group.bars), default=0) or 1)
    for i, bar in enumerate(group.bars):
        y = top + i * ROW
        low, end, high = (LEFT + value * scale for value in (bar.low, bar.median, bar.high))
        middle = y + ROW / 2
        yield f'<text x="{LEFT - 8}" y="{middle + 4:g}" text-anchor="end">{escape(bar.label)}</text>'
        yield (
            f'<rect x="{LEFT}" y="{y + (ROW - BAR) / 2:g}" width="{end - LEFT:.1f}" height="{BAR}" '
            f'fill="{COLOURS[bar.ours]}"/>'
        )
        yield (
            f'<path d="M{low:.1f} {middle:g}H{high:.1f}M{low:.1f} {middle - 4:g}v8M{high:.1f} {middle - 4:g}v8" '
            f'stroke="#475569"/>'
        )
        yield f'<text x="{high + 8:.1f}" y="{middle + 4:g}">{number(bar.median)} {escape(group.unit)}</text>'


def number(value: float) -> str:
    """Three figures, which is more than a measurement has."""
    if value <= 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def png() -> Callable[..., object]:
    """What makes a PNG of an SVG. Raises ValueError where it is not installed."""
    try:
        convert: Callable[..., object] = import_module("cairosvg").svg2png
    except ImportError as error:
        raise ValueError("a PNG needs the package cairosvg; an SVG needs nothing") from error
    return convert


def save(path: str, picture: str) -> None:
    """Write the SVG to `path`; as PNG where that ends in .png. Raises ValueError as `png` does, OSError."""
    if path.endswith(".png"):
        png()(bytestring=picture.encode(), write_to=path, scale=2)
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(picture)
