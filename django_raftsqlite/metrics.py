"""The figures of all nodes for Prometheus, one by one. Needs prometheus_client (the extra "metrics").

All figures are a node's, not a process's: counted by the process that hosts it, on behalf of all its processes, and
asked for by whichever of them is scraped. So it does not matter which worker of a server answers, and nothing is to
be added up. When another process takes over the node, its counters begin at 0 again, which ``rate()`` knows to
handle; ``raftsqlite_node_info`` says which process it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector as BaseCollector

from .picture import votes
from .status import aliases, node_figures, node_status

PREFIX = "raftsqlite_"

Values = Iterable[tuple[tuple[str, ...], Any]]
"""Values of labels after the alias, and the figure they have."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node said: its status and its figures."""

    status: Mapping[str, Any]
    figures: Mapping[str, Any]

    def members(self, read: Callable[[Mapping[str, Any]], Any]) -> Values:
        """A figure of each member, where it is known."""
        for member in self.status["members"]:
            yield (member["address"],), read(member)


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric: its name without the prefix (and without ``_total`` or ``_info``), and how it is read.

    ``labels`` come after ``alias``, which each has.
    """

    kind: type[Metric]
    name: str
    help: str
    read: Callable[[Seen], Values]
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """The name that queries use."""
        suffix = {CounterMetricFamily: "_total", InfoMetricFamily: "_info"}.get(self.kind, "")
        return f"{PREFIX}{self.name}{suffix}"


def _one(read: Callable[[Mapping[str, Any]], Any]) -> Callable[[Seen], Values]:
    return lambda seen: [((), read(seen.status))]


def _of_members(read: Callable[[Mapping[str, Any]], Any]) -> Callable[[Seen], Values]:
    return lambda seen: seen.members(read)


def _counter(name: str) -> Callable[[Seen], Values]:
    return lambda seen: [((), seen.figures["counters"][name])]


def _histogram(name: str) -> Callable[[Seen], Values]:
    return lambda seen: [((), seen.figures["histograms"][name])]


def _info(seen: Seen) -> Values:
    status = seen.status
    yield (
        (),
        {
            "node": status["node"],
            "name": status["name"],
            "pid": str(status["host"]["pid"]),
            "package": status["package"],
            "sqlite": status["sqlite"],
        },
    )


def _applying(status: Mapping[str, Any]) -> float:
    return float((status["applying"] or {"seconds": 0.0})["seconds"])


def _space(member: Mapping[str, Any], key: str) -> int | None:
    found: int | None = (member.get("space") or {}).get(key)
    return found


FIGURES: tuple[Figure, ...] = (
    Figure(InfoMetricFamily, "node", "The node, and the process that hosts it and counts for it.", _info),
    # The node and its group
    Figure(
        GaugeMetricFamily,
        "leads",
        "1 while this node leads its group, else 0.",
        _one(lambda s: s["role"] == "leader"),
    ),
    Figure(
        GaugeMetricFamily,
        "has_leader",
        "1 while this node reaches a leader (itself included), else 0: then it cannot write.",
        _one(lambda s: s["leader"] is not None and s["leader_reachable"]),
    ),
    Figure(
        GaugeMetricFamily,
        "failed",
        "1 after this node stopped itself, for example because its disk failed.",
        _one(lambda s: s["role"] == "failed"),
    ),
    Figure(
        GaugeMetricFamily,
        "suspect",
        "1 while the content of this node is not relied on: it serves neither reads nor writes.",
        _one(lambda s: s["suspect"] is not None),
    ),
    Figure(
        GaugeMetricFamily,
        "ready",
        "1 once this node has caught up with its group after its start.",
        _one(lambda s: s["ready"]),
    ),
    Figure(GaugeMetricFamily, "term", "The Raft term.", _one(lambda s: s["term"])),
    Figure(
        GaugeMetricFamily,
        "commit_index",
        "The newest log entry that this node knows to be committed.",
        _one(lambda s: s["commit_index"]),
    ),
    Figure(
        GaugeMetricFamily,
        "applied_index",
        "The newest log entry that this node has applied.",
        _one(lambda s: s["applied_index"]),
    ),
    Figure(
        GaugeMetricFamily,
        "lag_entries",
        "Committed log entries that this node has yet to apply.",
        _one(lambda s: max(s["commit_index"] - s["applied_index"], 0)),
    ),
    Figure(
        GaugeMetricFamily,
        "version",
        "Transactions that the group has committed in this lineage; the same on all nodes that are up to date.",
        _one(lambda s: s["version"]),
    ),
    Figure(
        CounterMetricFamily,
        "elections",
        "Elections in which this node stood.",
        _counter("elections"),
    ),
    Figure(
        CounterMetricFamily,
        "leader_changes",
        "How often this node learnt of another leader than the one before, the first included.",
        _counter("leader_changes"),
    ),
    # Members
    Figure(GaugeMetricFamily, "members", "Members of the group.", _one(lambda s: len(s["members"]))),
    Figure(
        GaugeMetricFamily,
        "voters",
        "Members that count for majorities.",
        _one(lambda s: sum(votes(member) for member in s["members"])),
    ),
    Figure(
        GaugeMetricFamily,
        "voters_reachable",
        "Voters with which this node has a session, itself included if it is one.",
        _one(lambda s: sum(votes(member) and member["reachable"] for member in s["members"])),
    ),
    Figure(
        GaugeMetricFamily,
        "member_reachable",
        "1 while this node has a session with the member (or is it), else 0.",
        _of_members(lambda m: m["reachable"]),
        ("member",),
    ),
    Figure(
        GaugeMetricFamily,
        "member_lag_entries",
        "Committed log entries that the member has yet to apply, as far as this node knows.",
        _of_members(lambda m: m["lag"]),
        ("member",),
    ),
    Figure(
        GaugeMetricFamily,
        "member_round_trip_seconds",
        "Time from this node to the member and back, smoothed.",
        _of_members(lambda m: m["round_trip"]),
        ("member",),
    ),
    Figure(
        GaugeMetricFamily,
        "member_clock_offset_seconds",
        "How far the member's clock is ahead of this node's (negative: behind).",
        _of_members(lambda m: m["clock_offset"]),
        ("member",),
    ),
    # Writes
    Figure(
        CounterMetricFamily,
        "writes",
        "Writes (autocommit statements and COMMITs) of this node's processes, by how they ended: done, error, "
        "conflict, locked, unavailable, unknown.",
        lambda seen: (((end,), count) for end, count in seen.figures["writes"].items()),
        ("end",),
    ),
    Figure(
        HistogramMetricFamily,
        "commit_seconds",
        "From the moment the node is given a write until it is committed and applied here; of those that were done.",
        _histogram("commit"),
    ),
    Figure(
        HistogramMetricFamily,
        "lease_wait_seconds",
        "How long a transaction waited for its turn under the write lease, whether it got it or gave up.",
        _histogram("lease_wait"),
    ),
    Figure(
        HistogramMetricFamily,
        "read_barrier_seconds",
        'How long a read barrier took: reads("leader"), and "bounded" and "session" where they had to ask.',
        _histogram("read_barrier"),
    ),
    Figure(
        CounterMetricFamily,
        "rebases",
        "How often a transaction lost its place and was run again on the newest state.",
        _counter("rebases"),
    ),
    Figure(
        CounterMetricFamily,
        "conflicts",
        "Transactions that ended with TransactionConflict.",
        _counter("conflicts"),
    ),
    Figure(
        GaugeMetricFamily,
        "waiting",
        "Writes and transactions that wait for their turn: on this node, and on the leader also those of others.",
        _one(lambda s: s["waiting"]),
    ),
    # Log and apply
    Figure(
        HistogramMetricFamily,
        "batch_transactions",
        "Transactions in one log entry, as this node applied them.",
        _histogram("batch"),
    ),
    Figure(
        HistogramMetricFamily,
        "batch_bytes",
        "Size of one log entry, as this node applied it.",
        _histogram("batch_bytes"),
    ),
    Figure(HistogramMetricFamily, "fsync_seconds", "How long an fsync of the Raft log took.", _histogram("fsync")),
    Figure(
        HistogramMetricFamily,
        "apply_seconds",
        "How long it took to apply one log entry to the database file.",
        _histogram("apply"),
    ),
    Figure(
        GaugeMetricFamily,
        "applying_seconds",
        "Since when one long entry is being applied (above 0.25 s), else 0.",
        _one(_applying),
    ),
    # Files
    Figure(GaugeMetricFamily, "log_entries", "Entries in the Raft log.", _one(lambda s: s["log"]["entries"])),
    Figure(GaugeMetricFamily, "log_bytes", "Size of the Raft log's entries.", _one(lambda s: s["log"]["bytes"])),
    Figure(GaugeMetricFamily, "wal_bytes", "Size of the database's -wal file.", _one(lambda s: s["wal_bytes"])),
    Figure(
        GaugeMetricFamily,
        "member_database_bytes",
        "Size of the member's database file.",
        _of_members(lambda m: _space(m, "database")),
        ("member",),
    ),
    Figure(
        GaugeMetricFamily,
        "member_disk_free_bytes",
        "Room that is left on the disk of the member's database file.",
        _of_members(lambda m: _space(m, "free")),
        ("member",),
    ),
    Figure(
        GaugeMetricFamily,
        "oldest_snapshot_seconds",
        "Age of the oldest state that the hosting process still reads, which keeps the -wal file from shrinking.",
        _one(lambda s: s["oldest_snapshot"] or 0.0),
    ),
    Figure(
        CounterMetricFamily,
        "snapshot_sent_bytes",
        "Bytes of snapshots that this node sent to members that lacked what the log no longer holds.",
        _one(lambda s: s["snapshots"]["sent_bytes"]),
    ),
    Figure(
        CounterMetricFamily,
        "snapshot_received_bytes",
        "Bytes of snapshots that this node was sent.",
        _one(lambda s: s["snapshots"]["received_bytes"]),
    ),
    Figure(
        GaugeMetricFamily,
        "last_backup_timestamp_seconds",
        "Unix time of the last backup that the members know of; missing where they know of none.",
        _one(lambda s: (s["last_backup"] or {"time": None})["time"]),
    ),
    Figure(
        GaugeMetricFamily,
        "archive_behind_entries",
        "Committed log entries that are not archived yet; missing where there is no archive, or it is not known.",
        _one(lambda s: (s["archive"] or {"behind": None})["behind"]),
    ),
    Figure(
        GaugeMetricFamily,
        "archive_gap",
        "1 when the archive lacks entries of the log, so that a backup is to be taken; missing where there is none.",
        _one(lambda s: None if s["archive"] is None else s["archive"]["gap"] is not None),
    ),
    # Processes
    Figure(
        GaugeMetricFamily,
        "attached_processes",
        "Processes of this machine that use the node besides the one that hosts it.",
        _one(lambda s: len(s["host"].get("attached") or ())),
    ),
    Figure(
        GaugeMetricFamily,
        "origins",
        "Processes, of all nodes, that the group knows as authors of writes.",
        _one(lambda s: s["origins"]),
    ),
    Figure(
        GaugeMetricFamily,
        "outcomes",
        "Outcomes of writes that are kept until their authors have them.",
        _one(lambda s: s["outcomes"]),
    ),
)

UP = f"{PREFIX}up"
UP_HELP = "1 if the node answered this scrape, else 0: then it has no other figures."


class Collector(BaseCollector):
    """Collects all figures of all aliases. To be registered with any registry::

    prometheus_client.REGISTRY.register(Collector())
    """

    def collect(self) -> Iterator[Metric]:
        """Ask all nodes; called by prometheus_client."""
        seen: dict[str, Seen] = {}
        up = GaugeMetricFamily(UP, UP_HELP, labels=["alias"])
        for alias in aliases():
            try:
                seen[alias] = Seen(node_status(alias), node_figures(alias))
            except (Error, ImproperlyConfigured):
                up.add_metric([alias], 0)
            else:
                up.add_metric([alias], 1)
        yield up
        for figure in FIGURES:
            kind: Any = figure.kind
            family = kind(PREFIX + figure.name, figure.help, labels=["alias", *figure.labels])
            for alias, node in seen.items():
                for labels, value in figure.read(node):
                    if value is not None:
                        _add(family, [alias, *labels], value)
            yield family

    def describe(self) -> list[Metric]:
        """Nothing: a registry that wants to know the names need not ask the nodes for it."""
        return []


def _add(family: Any, labels: list[str], value: Any) -> None:
    if not isinstance(family, HistogramMetricFamily):
        family.add_metric(labels, value)
        return
    total, buckets = 0, []
    for bound, count in zip([*value["bounds"], "+Inf"], value["counts"], strict=True):
        total += count
        buckets.append((str(bound), total))
    family.add_metric(labels, buckets, value["sum"])


def exposition() -> tuple[bytes, str]:
    """All figures in Prometheus's text format, and its content type."""
    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry), CONTENT_TYPE_LATEST
