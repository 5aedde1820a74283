"""How the tables of a plan's page, and the figures in them, are written."""

from collections.abc import Mapping, Sequence
from html import escape


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Rows, each with the attributes of its ``<tr>`` and its cells as HTML."""
    # vLLM's long names may break after an underscore.
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
    """A figure in seconds with half of its interval, if that is known."""
    value, half = figures[key], halves[key]
    if value is None or half is None:
        return seconds(value)
    return f"{seconds(value)} <span class=muted>&#177; {seconds(half)}</span>"


def dollars(amount: float) -> str:
    """Whole dollars, or millions."""
    return f"${amount / 1e6:,.2f}M" if amount >= 1e6 else f"${amount:,.0f}"


def share(value: float | None) -> str:
    """A percentage; a dash for None."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None, digits: int = 1) -> str:
    """With so many digits; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def seconds(value: float | None) -> str:
    """Seconds or milliseconds; a dash for None."""
    if value is None:
        return "-"
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.0f} ms" if value >= 0.01 else f"{1e3 * value:.1f} ms"
