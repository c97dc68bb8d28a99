"""The tables of docs/reliability.md: from measured rows to Markdown.

Owns docs/reliability.json, which has every row with the machine and the command it came
from, and the parts of the page between two marks, which are made of nothing else. Tests
and floods hand in whole tables (`record`); a test holds page and JSON together, so that
no figure is ever typed. Raises `ValueError` for a row that lacks a column, or a page
that lacks a mark.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
FIGURES = ROOT / "docs" / "reliability.json"

# The columns of each table, in the order of the page.
COLUMNS: dict[str, tuple[str, ...]] = {
    "faults": ("fault", "injected by", "clients", "told", "p99 ms", "lost", "in the log"),
    "floods": (
        "flood", "clients", "told", "p99 ms",
        "memory MiB", "descriptors", "orphans", "what else",
    ),
    "soak": ("what", "figure"),
}  # fmt: skip

Row = dict[str, str]


def machine() -> dict[str, Any]:
    """Where and when something was measured."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def figures() -> dict[str, Any]:
    """Every table as it was last measured; empty where none was."""
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def record(table: str, command: str, rows: list[Row], details: Any = None) -> None:
    """Put a whole table in the place of the one before, and make the page anew."""
    for row in rows:
        if set(row) != set(COLUMNS[table]):
            raise ValueError(f"{table}: expected {COLUMNS[table]}, got {tuple(row)}")
    all_of_them = figures()
    all_of_them[table] = {"machine": machine(), "command": command, "rows": rows}
    if details is not None:
        all_of_them[table]["details"] = details
    FIGURES.write_text(json.dumps(all_of_them, indent=1) + "\n")
    PAGE.write_text(rendered(PAGE.read_text(), all_of_them))


def rendered(page: str, tables: dict[str, Any]) -> str:
    """The page with every table that there is between its marks."""
    for name, table in tables.items():
        begin, end = (f"<!-- {name}: {word} -->\n" for word in ("begin", "end"))
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE.name}: expected one {begin.strip()} and one {end.strip()}")
        before, _, rest = page.partition(begin)
        page = before + begin + _markdown(name, table) + end + rest.partition(end)[2]
    return page


def _markdown(name: str, table: dict[str, Any]) -> str:
    columns = COLUMNS[name]
    where = table["machine"]
    lines = [
        f"`{table['command']}` on {where['date'][:10]}: {where['cpu']}, {where['cores']} cores,"
        f" Linux {where['kernel']}, Python {where['python']}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    lines += (
        "| " + " | ".join(row[column].replace("|", "\\|") for column in columns) + " |"
        for row in table["rows"]
    )
    return "\n".join(lines) + "\n"
