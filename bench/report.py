"""A comparison as people read it: a table on the terminal, a page with plots.

Owns the words and the colours; measures nothing. The page is one file with
its plots inside, and fetches nothing from anywhere.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style
from rich.console import Console
from rich.table import Table

from bench.compare import Comparison, targets

Reader = Callable[[Comparison, str], str]


@dataclass(frozen=True)
class Column:
    """A heading and how to read its cell from a run."""

    heading: str
    read: Reader


def _figure(name: str, form: str = "{:.1f}", scale: float = 1.0, spread: bool = False) -> Reader:
    def read(run: Comparison, peer: str) -> str:
        value = run.median(peer, name)
        if value is None:
            return "-"
        cell = form.format(value * scale)
        values = run.books[peer].values[name]
        if spread and len(values) > 1:
            cell += f" ({form.format(min(values) * scale)}-{form.format(max(values) * scale)})"
        return cell

    return read


def _ratio(other: str, figure: str) -> Reader:
    def read(run: Comparison, peer: str) -> str:
        value = run.ratio(peer, other, figure)
        return "-" if value is None else f"{value:.2f}"

    return read


def _answered(behaviour: str) -> Reader:
    def read(run: Comparison, peer: str) -> str:
        value = run.books[peer].answered(behaviour)
        if value is None:
            return "-"
        # 99.996 is not 100.
        return "100" if value == 100 else f"{min(value, 99.99):.2f}"

    return read


def _left(run: Comparison, peer: str) -> str:
    states = run.books[peer].notes.get("sockets_per_1000")
    if states is None:
        return "-"
    return ", ".join(f"{state} {number}" for state, number in sorted(states.items())) or "none"


def tables(run: Comparison) -> dict[str, list[Column]]:
    """The tables of a run, each narrow enough for one screen."""
    cost = [
        Column("drain us/conn", _figure("drain_cpu_us", "{:.2f}", spread=True)),
        Column("to nginx", _ratio("nginx", "drain_cpu_us")),
        Column("to floor", _ratio("floor", "drain_cpu_us")),
        Column("drained/s", _figure("drain_rate", "{:,.0f}", spread=True)),
        Column("disposals/s", _figure("closed_rate", "{:,.0f}", spread=True)),
        Column("closed us/conn", _figure("closed_cpu_us")),
        Column("with log us/conn", _figure("logged_cpu_us")),
        Column("lines/conn", _figure("logged_lines", "{:.3f}")),
        Column("client us/conn", _figure("client_cpu_us")),
    ]
    counted = [
        Column("syscalls", _figure("syscalls", "{:.2f}")),
        Column("packets", _figure("packets", "{:.2f}")),
        Column("RSS MiB", _figure("rss_mib")),
        Column("PSS MiB", _figure("pss_mib")),
        Column("start ms", _figure("start_ms")),
        Column("silent %", _answered("silent")),
        Column("early %", _answered("early")),
        Column("early 4k %", _answered("early 4k")),
        Column("quit %", _answered("quit")),
        Column("left by 1000", _left),
    ]
    paces = {
        f"Offered {rate:,} a second": [
            Column("server us/conn", _figure(f"offered_{rate}_cpu_us", spread=True)),
            Column("to nginx", _ratio("nginx", f"offered_{rate}_cpu_us")),
            Column("to floor", _ratio("floor", f"offered_{rate}_cpu_us")),
            Column("p50 us", _figure(f"offered_{rate}_p50_us", "{:.0f}", spread=True)),
            Column("p99 us", _figure(f"offered_{rate}_p99_us", "{:.0f}", spread=True)),
            Column("p99.9 us", _figure(f"offered_{rate}_p999_us", "{:.0f}", spread=True)),
            Column("client late us", _figure(f"offered_{rate}_late_us", "{:.0f}")),
        ]
        for rate in run.options.rates
        if any(f"offered_{rate}_cpu_us" in book.values for book in run.books.values())
    }
    shown = {"Cost at saturation (server CPU)": cost, **paces, "Counted": counted}
    # A table in which nobody has a figure was not asked for.
    return {
        title: columns
        for title, columns in shown.items()
        if any(column.read(run, peer) != "-" for column in columns for peer in run.books)
    }


COLOUR = {"hoped": "bold green", "met": "green", "missed": "bold red", "not measured": "dim"}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_run(run: Comparison, console: Console) -> None:
    """The tables on a terminal (or in a file, which has no width)."""
    if not console.is_terminal:
        console.width = 160
    for title, columns in tables(run).items():
        table = Table(title=title, title_justify="left")
        table.add_column("server")
        for column in columns:
            table.add_column(column.heading, justify="right")
        for peer in run.books:
            table.add_row(peer, *(column.read(run, peer) for column in columns))
        console.print(table)
    if "turnaway" in run.books:
        table = Table(title="What must be shown", title_justify="left")
        for heading in ("figure", "must be", "hoped for", "got", ""):
            table.add_column(heading, justify="left" if heading == "figure" else "right")
        for target in targets(run):
            table.add_row(
                target.figure, _number(target.must), _number(target.hoped), _number(target.got),
                f"[{COLOUR[target.verdict]}]{target.verdict}[/]",
            )  # fmt: skip
        console.print(table)
    for name, why in run.missing.items():
        console.print(f"missing: {name}: {why}", style="yellow", markup=False)
    for trouble in run.troubles:
        console.print(f"trouble: {trouble}", style="red", markup=False)


# --- plots ---------------------------------------------------------------

COLOURS = ("#1f5fa8", "#c2571a", "#3c8d40", "#8a4fa3", "#555555", "#a8324a", "#12888f", "#8c7000")
# White, not transparent: the plots stand on dark pages as well.
LOOK = Style(
    background="white",
    plot_background="white",
    foreground="#222222",
    foreground_strong="#000000",
    foreground_subtle="#777777",
    opacity="1",
    guide_stroke_color="#dddddd",
    major_guide_stroke_color="#bbbbbb",
    colors=COLOURS,
    value_colors=("#ffffff",) * len(COLOURS),
    font_family="sans-serif",
    value_font_family="sans-serif",
    value_font_size=12,
)


def _plain(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def _bars(title: str, unit: str, rows: dict[str, list[float | None]], over: list[str]) -> str:
    chart = pygal.HorizontalBar(
        style=LOOK, js=[], width=860, height=90 + 34 * len(over) * max(1, len(rows) // 2 + 1),
        title=title, x_title=unit, print_values=True, print_values_position="center",
        value_formatter=_plain,
        range_min=0, disable_xml_declaration=True, explicit_size=True, legend_at_bottom=True,
        show_legend=len(rows) > 1,
    )  # fmt: skip
    # Bars grow from the bottom: the first peer is to stand on top.
    chart.x_labels = list(reversed(over))
    for name, values in rows.items():
        chart.add(name, list(reversed(values)))
    return str(chart.render(is_unicode=True))


TAIL = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99)


def _latency(run: Comparison, rate: int) -> str:
    chart = pygal.Line(
        style=LOOK, js=[], width=860, height=420, logarithmic=True,
        title=f"Latency at {rate:,} a second, from the intended start",
        x_title="percentile", y_title="microseconds", disable_xml_declaration=True,
        explicit_size=True, dots_size=2, legend_at_bottom=True,
    )  # fmt: skip
    chart.x_labels = [f"{percent:g}" for percent in TAIL]
    for peer, book in run.books.items():
        result = book.latencies.get(str(rate))
        if result is not None:
            chart.add(peer, [max(1, result.percentile(percent)) for percent in TAIL])
    return str(chart.render(is_unicode=True))


def plots(run: Comparison) -> dict[str, str]:
    """Name of each plot and its SVG."""
    made: dict[str, str] = {}
    peers = list(run.books)
    if any("drain_cpu_us" in book.values for book in run.books.values()):
        made["drain"] = _bars(
            "Server CPU per connection, full-queue drain", "microseconds",
            {"drain": [run.median(peer, "drain_cpu_us") for peer in peers]}, peers,
        )  # fmt: skip
    if any("closed_rate" in book.values for book in run.books.values()):
        made["disposals"] = _bars(
            "Disposals per second, one core", "connections a second",
            {
                "full queue": [run.median(peer, "drain_rate") for peer in peers],
                "closed model": [run.median(peer, "closed_rate") for peer in peers],
            },
            peers,
        )  # fmt: skip
    if any(book.latencies for book in run.books.values()):
        fast = [rate for rate in run.options.rates if rate >= 1000]
        if fast:
            made["offered"] = _bars(
                "Server CPU per connection at a fixed offered rate", "microseconds",
                {
                    f"{rate:,}/s": [run.median(peer, f"offered_{rate}_cpu_us") for peer in peers]
                    for rate in fast
                },
                peers,
            )  # fmt: skip
        for rate in run.options.rates:
            made[f"latency-{rate}"] = _latency(run, rate)
    return made


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Turnaway and its peers, {date}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25em .6em; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
.hoped, .met {{ color: #067306 }} .missed {{ color: #b00; font-weight: bold }}
.scroll {{ overflow-x: auto }}
</style>
<h1>Turnaway and its peers</h1>
<p>{place}</p>
{body}
</html>
"""


def _html_table(
    headings: list[str], rows: list[list[str]], classes: list[str] | None = None
) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = ""
    for number, row in enumerate(rows):
        mark = f' class="{classes[number]}"' if classes else ""
        body += f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n"
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def page(run: Comparison, pictures: dict[str, str]) -> str:
    """The whole report as one HTML file."""
    place: dict[str, Any] = run.place
    parts: list[str] = []
    if "turnaway" in run.books:
        lines = targets(run)
        parts.append("<h2>What must be shown</h2>")
        parts.append(
            _html_table(
                ["figure", "must be", "hoped for", "got", ""],
                [
                    [t.figure, _number(t.must), _number(t.hoped), _number(t.got), t.verdict]
                    for t in lines
                ],
                [t.verdict.replace(" ", "-") for t in lines],
            )
        )
    for title, columns in tables(run).items():
        parts.append(f"<h2>{html.escape(title)}</h2>")
        parts.append(
            _html_table(
                ["server", *(column.heading for column in columns)],
                [[peer, *(column.read(run, peer) for column in columns)] for peer in run.books],
            )
        )
    parts += [f"<figure>{picture}</figure>" for picture in pictures.values()]
    if run.missing or run.troubles:
        told = [f"missing: {name}: {why}" for name, why in run.missing.items()]
        told += [f"trouble: {trouble}" for trouble in run.troubles]
        items = "".join(f"<li>{html.escape(item)}</li>" for item in told)
        parts.append(f"<h2>Not measured</h2><ul>{items}</ul>")
    where = (
        f"{place['date']}, {place['cpu']}, {place['cores']} cores, Linux {place['kernel']}, "
        f"Python {place['python']}. Median (least-most) of {run.options.rounds} interleaved "
        "rounds; one server core, one client core; every answer verified octet by octet."
    )
    return PAGE.format(date=place["date"], place=html.escape(where), body="\n".join(parts))


def markdown(run: Comparison) -> str:
    """The tables for a document."""
    parts: list[str] = []
    for title, columns in tables(run).items():
        parts.append(f"**{title}**\n")
        parts.append("| server | " + " | ".join(column.heading for column in columns) + " |")
        parts.append("|---|" + "---|" * len(columns))
        for peer in run.books:
            cells = " | ".join(column.read(run, peer) for column in columns)
            parts.append(f"| {peer} | {cells} |")
        parts.append("")
    return "\n".join(parts)


def write(run: Comparison, folder: Path, stem: str) -> list[Path]:
    """HTML, Markdown and one SVG for each plot."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots(run)
    written = [folder / f"{stem}.html", folder / f"{stem}.md"]
    written[0].write_text(page(run, pictures))
    written[1].write_text(markdown(run))
    for name, picture in pictures.items():
        path = folder / f"{stem}-{name}.svg"
        path.write_text(picture)
        written.append(path)
    return written
