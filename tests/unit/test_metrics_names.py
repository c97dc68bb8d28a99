"""The names of the metrics, and the dashboard that draws them.

Owns: the conventions (prometheus.io/docs/practices/naming), the labels that
there may be, and the sums over boards.  The boards here are real and have no
loop; what a running daemon counts is in tests/system/test_metrics.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from turnaway import cli
from turnaway._board import COUNTERS, Board
from turnaway.metrics import Collector
from turnaway.settings import List, Settings
from turnaway.stats import ERRORS, OUTCOMES, REFUSALS, Ledger, Row, Totals

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "contrib/grafana/turnaway.json"

# A label that would tell one client from another has no place here.
LABELS = {
    "listener",
    "list",
    "persona",
    "outcome",
    "protocol",
    "errno",
    "code",
    "reason",
    "result",
    "worker",
    "version",
    "le",
}
# What the issue and the documentation name.
NAMED = {
    "turnaway_connections_total": {"listener", "persona", "outcome"},
    "turnaway_answers_total": {"listener", "protocol"},
    "turnaway_accept_errors_total": {"listener", "errno"},
    "turnaway_listener_rests_total": {"listener"},
    "turnaway_early_talkers_total": {"listener"},
    "turnaway_held_sockets": set(),
    "turnaway_held_refusals_total": {"reason"},
    "turnaway_stress": set(),
    "turnaway_log_lines_lost_total": set(),
    "turnaway_records_dropped_total": set(),
    "turnaway_listen_overflows_total": set(),
    "turnaway_listen_drops_total": set(),
    "turnaway_disposal_seconds_bucket": {"le"},
    "turnaway_disposal_seconds_sum": set(),
    "turnaway_disposal_seconds_count": set(),
    "turnaway_build_info": {"version"},
    "turnaway_start_time_seconds": set(),
    "turnaway_reloads_total": {"result"},
    "turnaway_worker_turns_total": {"worker"},
}


def settings(*listeners: str, persona: str = "blocked") -> Settings:
    words = listeners or ("127.0.0.1:2525 mx.example.com", "[::1]:8080 www.example.com")
    line = ["turnaway-fast", "-w", "2", "-p", persona, "Earth", *words]
    parsed = cli.parse(line, root=False).settings
    return replace(parsed, lists=(List("drop", ("/etc/turnaway/drop.txt",)),))


def followed(*many: Settings) -> Ledger:
    ledger = Ledger()
    for one in many:
        board = Board(one.workers, len(one.listeners), lists=len(one.lists))
        ledger.follow(one, board)
    return ledger


def exposition(ledger: Ledger) -> dict[str, list[dict[str, str]]]:
    """{sample's name: [labels]}."""
    text = Collector(ledger, lambda: 0).text().decode()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
            if family.type == "counter":
                assert sample.name.endswith("_total")
            elif family.type == "gauge":
                assert not sample.name.endswith("_total")
    return found


def test_every_name_that_is_promised() -> None:
    found = exposition(followed(settings()))
    for name, labels in NAMED.items():
        assert name in found
        for one in found[name]:
            assert set(one) == labels


def test_names_and_labels_are_conventional() -> None:
    for name, rows in exposition(followed(settings())).items():
        assert re.fullmatch(r"turnaway_[a-z]+(_[a-z]+)*", name)
        for labels in rows:
            assert set(labels) <= LABELS


def test_outcomes_are_counters_that_exclude_each_other() -> None:
    """count() in answer.pxd moves one of them for each connection that is over."""
    source = (ROOT / "ext/answer.pxd").read_text()
    body = source.partition("void count(")[2].partition("cdef inline")[0]
    branches = re.findall(
        r"if outcome == OUTCOME_(\w+):\n\s+net_add64\(&counters.count\[<int>(\w+)\], 1\)\n\s+return",
        body,
    )
    assert [first for first, _ in branches] == [second for _, second in branches]
    ends = {name.lower() for _, name in branches} | {"sent"}
    assert ends == set(OUTCOMES)
    assert "count[<int>SENT], 1)" in body


def test_every_counter_is_shown_somewhere() -> None:
    shown = {
        "accepted",
        "early",
        "expired",
        "drain_expired",
        "sacrificed",
        "quits",
        "commands_wrong",
        "rests",
        "answered_http",
        "answered_tls",
        "answered_socks",
        *OUTCOMES,
        *REFUSALS.values(),
        *ERRORS,
    }
    # How a client was held is an event between accept and outcome: held_sockets.
    assert set(COUNTERS) - shown == {"parked", "park_full", "held", "proxied"}


class _Counting:
    """A board with counters of the test's own."""

    def __init__(self, of: Settings, **counts: int) -> None:
        self._board = Board(of.workers, len(of.listeners), lists=len(of.lists))
        self.counts = counts

    def counters(self, worker: int, listener: int) -> tuple[int, ...]:
        return tuple(self.counts.get(name, 0) if worker == 0 else 0 for name in COUNTERS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)


def test_a_board_that_leaves_takes_nothing_with_it() -> None:
    one, other = settings(), settings("127.0.0.1:2525 mx.example.com", persona="mail")
    old, fresh = _Counting(one, accepted=7, sent=6, reset=1), _Counting(other, accepted=2, sent=2)
    ledger = Ledger()
    ledger.follow(one, old)  # type: ignore[arg-type]
    ledger.follow(other, fresh)  # type: ignore[arg-type]
    before = ledger.sums()
    ledger.leave(old)  # type: ignore[arg-type]
    assert ledger.sums().rows == before.rows
    assert before.rows[Row("127.0.0.1:2525", "mx.example.com", "blocked", "smtp")]["accepted"] == 7
    assert before.rows[Row("127.0.0.1:2525", "mx.example.com", "mail", "smtp")]["accepted"] == 2
    third = _Counting(one, accepted=1, sent=1)
    ledger.follow(one, third)  # type: ignore[arg-type]
    assert (
        ledger.sums().rows[Row("127.0.0.1:2525", "mx.example.com", "blocked", "smtp")]["accepted"]
        == 8
    )


def test_answers_never_fall_while_the_loops_count() -> None:
    """`sent` is read before `answered_http`, and the loop is between the two."""
    of = settings("127.0.0.1:2525 mx.example.com")
    board = _Counting(of, sent=10, answered_http=4)
    ledger = Ledger()
    ledger.follow(of, board)  # type: ignore[arg-type]
    collector = Collector(ledger, lambda: 0)

    def banners() -> float:
        for family in text_string_to_metric_families(collector.text().decode()):
            for sample in family.samples:
                if sample.name == "turnaway_answers_total" and sample.labels["protocol"] == "smtp":
                    return sample.value
        raise AssertionError

    assert banners() == 6
    board.counts["answered_http"] = 5
    assert banners() == 6
    board.counts["sent"] = 12
    assert banners() == 7


def test_totals_of_nothing() -> None:
    assert Ledger().sums().rows == {}
    assert Totals()["accepted"] == 0


# --- the dashboard ------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def queries() -> Iterator[str]:
    """Every expression of the dashboard: panels and annotations."""
    made = dashboard()
    for panel in made["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for one in made["annotations"]["list"]:
        if "expr" in one:
            yield one["expr"]


def test_the_dashboard_can_be_imported_and_provisioned() -> None:
    made = dashboard()
    assert made["id"] is None
    assert made["uid"] == "turnaway"
    assert made["schemaVersion"] >= 36
    assert made["templating"]["list"][0]["type"] == "datasource"
    numbers = [panel["id"] for panel in made["panels"]]
    assert len(set(numbers)) == len(numbers) > 10
    for panel in made["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_names_what_there_is(query: str) -> None:
    found = exposition(followed(settings()))
    names = re.findall(r"turnaway_\w+", query)
    assert names
    for name in names:
        assert name in found
    ours = {label for name in names for labels in found[name] for label in labels}
    grouped = re.findall(r"\bby \(([^)]*)\)", query)
    for label in (one.strip() for group in grouped for one in group.split(",")):
        assert label in ours
    for label in re.findall(r'[{,]\s*(\w+)=~?"', query):
        assert label in ours | {"job", "instance"}
    # A range of one's own breaks when the scrape interval is another.
    assert set(re.findall(r"\[([^\]]+)\]", query)) <= {"$__rate_interval"}
    for name in re.findall(r"(turnaway_\w+)\{[^}]*\}\[", query):
        assert name.endswith(("_total", "_bucket", "_sum", "_count", "_start_time_seconds"))


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            kept = ",".join(re.findall(r"\bby \(([^)]*)\)", target["expr"]))
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in [one.strip() for one in kept.split(",")], target


def test_the_dashboard_shows_every_metric() -> None:
    drawn = " ".join(queries())
    for name in exposition(followed(settings())):
        assert re.search(rf"\b{name}\b", drawn), name
