"""Line charts as SVG text, bars and legends as HTML.

A chart has the width of a phone's screen, so that its text stays legible there. The
page arranges bars and legends and wraps long lines. Colors are names of CSS variables
(``--a`` ...), which the page sets for light and dark mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH, _HEIGHT = 400.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 40.0, 44.0
_DASHES = ' stroke-dasharray="5 4"'


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values; all values on a logarithmic axis are above 0."""

    title: str
    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Return a value's clipped position, from 0 at ``low`` to 1 at ``high``."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Return powers of 2 or 10 for a log axis, otherwise multiples of 1, 2 or 5."""
        if self.log:
            decades = math.log10(self.high / self.low)
            factor = 10 if self.low < 1 else 2 if decades < 1.6 else 4
            start = 10 ** math.ceil(math.log10(self.low)) if factor == 10 else self.low
            found = [start]
            while found[-1] * factor <= self.high * 1.001:
                found.append(found[-1] * factor)
            return found
        span = self.high - self.low
        step = 10 ** math.floor(math.log10(span / 4))
        for factor in (5, 2):
            if span / (step * factor) >= 3:
                step *= factor
                break
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class Series:
    """A line through points. The legend contains it only if it has a title."""

    title: str
    points: Sequence[tuple[float, float]]
    color: str
    filled: bool = False
    dashed: bool = False


@dataclass(slots=True)
class Chart:
    """Series over two axes, with vertical marks and horizontal levels."""

    x: Axis
    y: Axis
    _series: list[Series] = field(default_factory=list)
    _marks: list[tuple[float, str]] = field(default_factory=list)
    _levels: list[tuple[float, str]] = field(default_factory=list)

    def add(self, series: Series) -> None:
        """Add a series on top of the previous ones."""
        self._series.append(series)

    def mark(self, value: float, label: str) -> None:
        """Add a vertical line at an x value."""
        self._marks.append((value, label))

    def level(self, value: float, title: str) -> None:
        """Add a dotted horizontal line at a y value."""
        self._levels.append((value, title))

    def svg(self) -> str:
        """Return the chart as an SVG element."""
        parts = [
            f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
            f'aria-label="{escape(self.y.title)} by {escape(self.x.title)}">'
        ]
        parts += self._grid()
        parts += [self._line(series) for series in self._series if series.points]
        parts += self._annotations()
        parts.append("</svg>")
        return "\n".join(parts)

    def legend(self) -> str:
        """Return the legend as a list; empty if no line has a title."""
        entries = []
        for series in self._series:
            style = "dashed" if series.dashed else "solid"
            if series.title:
                entries.append((series.title, f"var(--{series.color})", style))
        entries += [(title, "var(--text)", "dotted") for _, title in self._levels]
        if not entries:
            return ""
        items = "".join(
            f'<li><i style="border-top: 3px {style} {color}"></i>{escape(title)}</li>'
            for title, color, style in entries
        )
        return f"<ul class=legend>{items}</ul>"

    def _px(self, value: float) -> float:
        return _LEFT + self.x.share(value) * (_WIDTH - _LEFT - _RIGHT)

    def _py(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - self.y.share(value) * (_HEIGHT - _TOP - _BOTTOM)

    def _grid(self) -> list[str]:
        bottom = _HEIGHT - _BOTTOM
        parts = []
        for tick in self.y.ticks():
            y = self._py(tick)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                'stroke="var(--line)"/>'
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{_number(tick)}</text>"
            )
        for tick in self.x.ticks():
            x = self._px(tick)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" '
                'stroke="var(--muted)"/>'
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
                f"{_number(tick)}</text>"
            )
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" '
            'stroke="var(--muted)"/>'
            f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self.x.title)}</text>"
            f'<text x="4" y="14">{escape(self.y.title)}</text>'
        )
        return parts

    def _line(self, series: Series) -> str:
        points = " ".join(
            f"{self._px(x):.1f},{self._py(y):.1f}" for x, y in series.points
        )
        color = f"var(--{series.color})"
        if series.filled:
            left, right = series.points[0][0], series.points[-1][0]
            floor = self._py(self.y.low)
            return (
                f'<polygon points="{self._px(left):.1f},{floor:.1f} {points} '
                f'{self._px(right):.1f},{floor:.1f}" fill="{color}" opacity="0.8"/>'
            )
        return (
            f'<polyline points="{points}" fill="none" stroke="{color}" '
            f'stroke-width="2"{_DASHES if series.dashed else ""}/>'
        )

    def _annotations(self) -> list[str]:
        parts = []
        for value, _ in self._levels:
            y = self._py(value)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                'stroke="var(--text)" stroke-dasharray="1 4"/>'
            )
        for value, label in self._marks:
            x = self._px(value)
            end = "end" if x > _WIDTH - 60 else "middle"
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
                f'stroke="var(--b)"{_DASHES}/>'
                f'<text class="strong" x="{x:.1f}" y="{_TOP - 5}" '
                f'text-anchor="{end}">'
                f"{escape(label)}</text>"
            )
        return parts


@dataclass(frozen=True, slots=True)
class Bar:
    """One labeled bar, with a note after its value."""

    label: str
    value: float
    color: str
    note: str = ""


def bar_chart(bars: Sequence[Bar]) -> str:
    """Return horizontal bars on one scale, each with a label, a value and a note."""
    longest = max([bar.value for bar in bars] + [1.0])
    rows = []
    for bar in bars:
        share = 100 * bar.value / longest
        note = f" <span class=muted>{escape(bar.note)}</span>" if bar.note else ""
        rows.append(
            f"<div class=bar><span>{escape(bar.label)}</span>"
            f'<span class=track><span class=fill style="width: {share:.1f}%; '
            f'background: var(--{bar.color})"></span></span>'
            f"<span>{bar.value:,.0f}{note}</span></div>"
        )
    return f"<div class=bars>{''.join(rows)}</div>"


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}K"
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.3g}"
