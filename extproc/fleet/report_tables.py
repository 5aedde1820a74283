"""The tables of a plan's page, and the format of their figures."""

from collections.abc import Mapping, Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table from rows, each with attributes of ``<tr>`` and cells as HTML."""
    # Allow a line break after each underscore in vLLM's long names.
    titles = "".join(
        f"<th>{escape(title).replace('_', '_<wbr>')}</th>" for title in head
    )
    body = "".join(
        f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
        for kind, cells in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table>"


def interval(
    figures: Mapping[str, float | None], halves: Mapping[str, float | None], key: str
) -> str:
    """Return a figure in seconds, with half the width of its interval, or "?"."""
    value, half = figures[key], halves[key]
    if value is None:
        return seconds(value)
    width = "?" if half is None else seconds(half)
    return f"{seconds(value)} <span class=muted>&#177; {width}</span>"


def dollars(amount: float) -> str:
    """Return an amount in whole dollars, or in millions."""
    return f"${amount / 1e6:,.2f}M" if amount >= 1e6 else f"${amount:,.0f}"


def share(value: float | None) -> str:
    """Return a percentage, or a dash for None."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with the given number of digits, or a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def seconds(value: float | None) -> str:
    """Return seconds or milliseconds, or a dash for None."""
    if value is None:
        return "-"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.0f} ms" if value >= 0.01 else f"{1e3 * value:.1f} ms"
