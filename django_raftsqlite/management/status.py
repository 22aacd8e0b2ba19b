"""A node's status as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..amounts import seconds

FAR = 0.005
"""Seconds of a round trip that are worth a word."""


def _archive(archive: Mapping[str, Any]) -> str:
    if archive["name"] is None:
        shown = "not begun yet"
    elif archive["index"] is None:
        shown = "not known yet"
    else:
        shown = f"up to log index {archive['index']}, {archive['behind']} entries behind"
    if archive["gap"] is not None:
        shown += f"; it has a GAP before {archive['gap']}: take a backup"
    return f"{shown}; {archive['problem']}" if archive["problem"] else shown


def has_leader(status: Mapping[str, Any]) -> bool:
    """Whether the node knows a leader and reaches it."""
    return status.get("leader") is not None and bool(status.get("leader_reachable", True))


def render(alias: str, status: Mapping[str, Any]) -> str:
    """The status as an aligned table, the members below it."""
    host = status.get("host") or {}
    attached = host.get("attached") or []
    role = str(status["role"])
    if status.get("reason"):
        role += f" ({status['reason']})"
    if role == "joining":
        role += f": {status.get('problem') or 'the group is asked to admit this node'}"
    pairs = [
        ("database", f"{alias}  {status['name']}"),
        ("node", status["node"]),
        ("role", role),
        ("leader", status["leader"] or "none"),
        ("term", status["term"]),
        *_distance(status),
        ("commit index", status["commit_index"]),
        ("applied index", status["applied_index"]),
        ("version", status["version"]),
        ("digest", status["digest"]),
        ("protocol", _protocol(status.get("protocol") or {})),
        ("host", f"process {host.get('pid')}" + (f", {len(attached)} attached" if attached else "") + _shy(host)),
        ("write lease", status.get("lease") or "free"),
    ]
    if (origins := status.get("origins")) is not None:
        parts = f", parts of {status['parted']} transactions" if status.get("parted") else ""
        pairs.append(("requests", f"{status.get('outcomes')} outcomes kept for {origins} origins{parts}"))
    wal = status.get("wal_bytes")
    if wal is not None:
        age = status.get("oldest_snapshot")
        oldest = f", oldest reader of process {host.get('pid')} since {age:.0f} s" if age else ""
        pairs.append(("WAL", f"{wal / 2**20:.1f} MiB{oldest}"))
    log = status.get("log")
    if log:
        held = f"{log['entries']} entries from {log['first_index']} on, {log['bytes'] / 2**20:.1f} MiB"
        if log.get("synced_ago") is not None:
            held += f", cut {seconds(log['synced_ago'])} ago"
        pairs.append(("Raft log", held))
    if (archive := status.get("archive")) is not None:
        pairs.append(("archive", _archive(archive)))
    pairs += [("snapshot", line) for line in _snapshots(status.get("snapshots") or {})]
    if status.get("suspect"):
        pairs.append(("SUSPECT", f"serves neither reads nor writes: {status['suspect']}"))
    pairs += [("DIFFERS", reason) for reason in (status.get("differs") or {}).values()]
    applying = status.get("applying")
    if applying:
        pairs.append(("applying", f"{applying['statement'] or 'a transaction'} (since {applying['seconds']:.0f} s)"))
    width = max(len(label) for label, _ in pairs)
    lines = [f"{label:<{width}}  {value}" for label, value in pairs]
    members = [("member", "role", "reachable", "applied", "lag", "version", "digest")]
    members += [
        (
            str(member["address"]),
            str(member.get("role") or "?") + (", suspect" if member.get("suspect") else _shy(member)),
            "yes" if member.get("reachable") else "NO",
            _known(member.get("applied")),
            _known(member.get("lag")),
            _known(member.get("version")),
            _known(member.get("digest"))[:16],
        )
        for member in status["members"]
    ]
    return "\n".join([*lines, "", *table(members)])


def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Rows as lines of aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _snapshots(told: Mapping[str, Any]) -> Iterable[str]:
    """Who gets a copy of whose database, and how far that is."""
    for sent in told.get("sending") or ():
        yield f"to {sent['to']}: {_share(sent)} sent"
    receiving = told.get("receiving")
    if receiving:
        yield f"from {receiving['from']}: {_share(receiving)} here, {receiving['phase']}"
    if told.get("problem"):
        yield str(told["problem"])


def _share(transfer: Mapping[str, Any]) -> str:
    return f"{transfer['bytes'] / 2**20:.1f} of {transfer['size'] / 2**20:.1f} MiB (log index {transfer['index']})"


def _distance(status: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The election timeout, and how far the other members are, where they are not near."""
    trips = {m["address"]: m["round_trip"] for m in status["members"] if m.get("round_trip") is not None}
    if status.get("election_timeout") is not None:
        far = ", ".join(f"{address} {1000 * trip:.0f} ms" for address, trip in trips.items() if trip >= FAR)
        yield "elections", f"after {status['election_timeout']:g} s" + (f"; round trips: {far}" if far else "")


def _protocol(told: Mapping[str, Any]) -> str:
    """What the group uses, and whom it waits for before it uses the newest version of this node."""
    used, (_, newest), waits_for = told.get("used"), told.get("speaks", (None, None)), told.get("waits_for") or []
    text = _known(used)
    return f"{text}, and {newest} when all members speak it: {', '.join(waits_for)}" if waits_for else text


def _shy(told: Mapping[str, Any]) -> str:
    return ", reluctant to lead" if told.get("reluctant") else ""


def _known(value: object) -> str:
    return "?" if value is None else str(value)
