"""The state of a group in words and numbers for people: what the admin's page shows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .amounts import UNKNOWN, known, rate, seconds, size
from .charts import Chart, latency, writes, writes_per_second
from .management.status import has_leader
from .node_checks import BACKUP_AGE, CLOCKS_APART

FAR_BEHIND = 1000
"""Log entries."""
OLD_READER = 60.0
LARGE_WAL = 64 * 1024 * 1024

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that somebody should know; ``grave``: something does not work."""

    text: str
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A member of the group."""

    address: str
    role: str
    state: str
    well: bool
    own: bool
    lag: str
    round_trip: str
    files: str
    free: str
    log: str
    versions: str


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the page shows of one alias."""

    alias: str
    summary: str
    grave: bool
    warnings: list[Warned]
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    """Title, value, and a few words below it."""
    members: list[Row] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    holder: str | None = None
    queue: list[str] = field(default_factory=list)
    waiting: int = 0
    details: list[tuple[str, str]] = field(default_factory=list)


def broken(alias: str, error: object) -> Picture:
    """Where the node cannot be asked."""
    return Picture(alias, "The node does not answer.", True, [Warned(str(error), grave=True)])


def picture(alias: str, status: Status, recent: Sequence[Mapping[str, Any]], now: float | None = None) -> Picture:
    """What a node's status and the points of its last minutes say. ``now`` is Unix time."""
    now = time.time() if now is None else now
    warnings = sorted(warnings_of(status, now), key=lambda warned: not warned.grave)
    grave = any(warned.grave for warned in warnings)
    return Picture(
        alias=alias,
        summary=_summary(status, warnings, grave=grave),
        grave=grave,
        warnings=warnings,
        facts=list(_facts(status, recent, now)),
        members=[_row(member, status) for member in status["members"]],
        charts=[writes(recent), latency(recent)],
        holder=status["lease"],
        queue=list(status["queue"]),
        waiting=status["waiting"],
        details=list(_details(status)),
    )


def warnings_of(status: Status, now: float) -> Iterator[Warned]:
    """Everything that somebody should know, in plain words."""
    yield from _of_this_node(status)
    yield from _of_members(status)
    if status["snapshots"].get("problem"):
        yield Warned(str(status["snapshots"]["problem"]))
    yield from _of_archive(status["archive"])
    applying = status["applying"]
    if applying:
        what = applying["statement"] or "a transaction"
        yield Warned(
            f"One long statement is being applied since {seconds(applying['seconds'])}, and writes wait: {what}"
        )
    oldest, wal = status["oldest_snapshot"] or 0.0, status["wal_bytes"] or 0
    if oldest > OLD_READER and wal > LARGE_WAL:
        yield Warned(
            f"A reader that is {seconds(oldest)} old keeps the -wal file ({size(wal)}) from shrinking. The log of "
            "its process names the statement."
        )
    last = status["last_backup"]
    if last is None:
        yield Warned("No backup has been taken, as far as the members know.")
    elif now - last["time"] > BACKUP_AGE:
        yield Warned(f"The last backup is {seconds(now - last['time'])} old.")


def _of_this_node(status: Status) -> Iterator[Warned]:
    if status["role"] == "failed":
        yield Warned(f"This node stopped itself: {status['reason']}", grave=True)
    if status["suspect"]:
        yield Warned(
            f"This node serves neither reads nor writes, since its content differs: {status['suspect']}", grave=True
        )
    for reason in (status["differs"] or {}).values():
        yield Warned(str(reason), grave=True)
    if not has_leader(status):
        yield Warned("No leader is in reach: nothing can be written here.", grave=True)
    elif not status["ready"]:
        yield Warned("This node has yet to catch up with its group.")


def _of_archive(archive: Status | None) -> Iterator[Warned]:
    if archive is None:
        return
    if archive["problem"]:
        yield Warned(f"{str(archive['problem'])[:1].upper()}{str(archive['problem'])[1:]}")
    if archive["gap"] is not None:
        yield Warned(
            f"The archive lacks what was committed before log index {archive['gap']}: take a backup, since moments "
            "before the next one cannot all be restored."
        )


def _of_members(status: Status) -> Iterator[Warned]:
    members = status["members"]
    voters = [member for member in members if votes(member)]
    away = [member["address"] for member in members if not member["reachable"]]
    if away:
        left = (len(voters) - 1) // 2 - sum(not member["reachable"] for member in voters)
        none_left = " One more lost, and nothing can be written." if left == 0 else " No majority is left."
        rest = "" if left > 0 or len(voters) == 1 else none_left
        yield Warned(f"Not in reach: {', '.join(away)}.{rest}", grave=left < 0)
    for problem in (status["waiting_to_join"], status["problem"]):
        if problem:
            yield Warned(str(problem))
    versions = {member["sqlite"] for member in members if member["sqlite"]}
    if len(versions) > 1:
        yield Warned(f"The members run different versions of SQLite: {', '.join(sorted(versions))}.")
    for member in members:
        yield from _of_member(member, own=member["address"] == status["node"])


def _of_member(member: Status, *, own: bool) -> Iterator[Warned]:
    address = member["address"]
    if not own:
        if member["failed"]:
            yield Warned(f"{address} stopped itself: {member['failed']}", grave=True)
        if member["suspect"]:
            yield Warned(f"{address} serves nothing, since its content differs: {member['suspect']}", grave=True)
    if (member["lag"] or 0) > FAR_BEHIND:
        yield Warned(f"{address} has yet to apply {member['lag']} log entries.")
    offset = member["clock_offset"] or 0.0
    if abs(offset) > CLOCKS_APART:
        yield Warned(f"The clock of {address} is {seconds(abs(offset))} {'ahead' if offset > 0 else 'behind'}.")
    space = member["space"]
    if "free" in space and space["free"] < 2 * space["database"]:
        yield Warned(f"The disk of {address} has {size(space['free'])} left; a copy needs {size(space['database'])}.")
    verified = member["verified"] or {}
    if verified.get("problem"):
        yield Warned(f"{address} could not verify its content: {verified['problem']}")


def _summary(status: Status, warnings: Sequence[Warned], *, grave: bool) -> str:
    state = "Something does not work" if grave else "Something to look at" if warnings else "All is well"
    leader = f"{status['leader']} leads" if has_leader(status) else "there is no leader"
    reachable = sum(member["reachable"] for member in status["members"])
    return f"{state}: {leader}, {reachable} of {len(status['members'])} members are in reach."


def _facts(status: Status, recent: Sequence[Status], now: float) -> Iterator[tuple[str, str, str]]:
    since = status["leader_since"]
    yield (
        "Leader",
        status["leader"] or "none",
        "" if since is None else f"for {seconds(since)}, term {status['term']}",
    )
    latest = recent[-1] if recent else None
    yield "Writes", "?" if latest is None else f"{rate(writes_per_second(latest))} /s", "committed by the group"
    timed = next((point for point in reversed(recent) if point["p50"] is not None), None)
    if timed is None:
        yield "Commit latency", UNKNOWN, "no commit on this node lately"
    else:
        below = f"99 % within {seconds(timed['p99'])}"
        yield (
            "Commit latency",
            seconds(timed["p50"]),
            below + ("" if timed is latest else f", {seconds(timed['ago'])} ago"),
        )
    yield "Write lease", "held" if status["lease"] else "free", f"{status['waiting']} waiting"
    yield _last_snapshot(status["log"])
    last = status["last_backup"]
    if last is None:
        yield "Last backup", "none", "as far as the members know"
    else:
        yield (
            "Last backup",
            f"{seconds(max(now - last['time'], 0.0))} ago",
            f"log index {last['index']}, {last['place']}",
        )
    yield ("Archive", *_archive(status["archive"]))
    yield from _verified(status["members"])


def _last_snapshot(log: Status) -> tuple[str, str, str]:
    """When this node's database file last took the place of the beginning of its Raft log."""
    first = log["first_index"]
    if log["synced_ago"] is not None:
        return "Last snapshot", f"{seconds(log['synced_ago'])} ago", f"the Raft log begins at index {first}"
    if first > 1:
        return "Last snapshot", f"at log index {first}", "before this process hosted the node"
    return "Last snapshot", "none yet", "the Raft log has all since its beginning"


def _archive(archive: Status | None) -> tuple[str, str]:
    """How far the log is kept outside of the group, and a few words below that."""
    if archive is None:
        return "none", 'OPTIONS["archive"] is not set'
    if archive["name"] is None:
        return "not begun", "it begins with a leader"
    if archive["index"] is None:
        return "not known", "the leader has yet to look into the storage"
    end = f"it ends at index {archive['index']}"
    if archive["gap"] is not None:
        return "a gap", f"before log index {archive['gap']}; {end}"
    return f"{archive['behind']} behind", f"log entries; {end}"


def _verified(members: Sequence[Status]) -> Iterator[tuple[str, str, str]]:
    """What the newest verification found that the members tell of."""
    told = [member["verified"] for member in members if member["verified"]]
    if not told:
        yield "Verified", "not lately", "see the action"
        return
    index = max(each["index"] for each in told)
    digests = [each["digest"] for each in told if each["index"] == index]
    done = [digest for digest in digests if digest is not None]
    if len(set(done)) > 1:
        found = "DIFFERENT"
    elif len(done) == len(members):
        found = "all equal"
    else:
        found = f"{len(done)} of {len(members)} done"
    yield "Verified", found, f"at log index {index}"


def votes(member: Status) -> bool:
    """Whether a member counts for majorities."""
    return member["role"] not in {"learner", "newcomer"}


def _row(member: Status, status: Status) -> Row:
    own = member["address"] == status["node"]
    state = (
        "failed"
        if member["failed"]
        else "suspect"
        if member["suspect"]
        else "away"
        if not member["reachable"]
        else "applying"
        if member["applying"]
        else "in reach"
    )
    trip = member["round_trip"]
    return Row(
        address=member["address"],
        role=member["role"] + (", reluctant" if member["reluctant"] else ""),
        state="this node" if own and state == "in reach" else state,
        well=state in {"in reach", "applying"},
        own=own,
        lag=known(member["lag"]),
        round_trip=UNKNOWN if own else "?" if trip is None or not member["reachable"] else seconds(trip),
        files=size(_on_disk(member["space"])),
        free=size(member["space"].get("free")),
        log=size(member["log_bytes"]),
        versions=f"{known(member['package'])} / {known(member['sqlite'])}",
    )


def _on_disk(space: Status) -> int | None:
    """The database file and what is yet to be written back to it."""
    return space["database"] + space.get("wal", 0) if "database" in space else None


def _details(status: Status) -> Iterator[tuple[str, str]]:
    host = status["host"]
    yield "File", str(status["name"])
    yield "Hosted by process", str(host["pid"]) + (" (reluctant to lead)" if host.get("reluctant") else "")
    yield "Attached processes", ", ".join(map(str, host.get("attached") or ())) or "none"
    yield "Election timeout", seconds(status["election_timeout"])
    yield "Protocol", str(status["protocol"].get("used"))
    yield "Commit index", str(status["commit_index"])
    yield "Applied index", str(status["applied_index"])
    yield "Version", f"{status['version']} in lineage {status['lineage'][:8]}"
    yield "Digest", str(status["digest"])
    yield "Write-ahead log", size(status["wal_bytes"])
    if status["oldest_snapshot"]:
        yield "Oldest reader of the hosting process", seconds(status["oldest_snapshot"])
    yield (
        "Raft log",
        f"{size(status['log']['bytes'])}, {status['log']['entries']} entries from {status['log']['first_index']} on",
    )
    yield "Outcomes kept", f"{status['outcomes']} for {status['origins']} processes"
    snapshots = status["snapshots"]
    for sent in snapshots["sending"]:
        yield f"Copy for {sent['to']}", f"{size(sent['bytes'])} of {size(sent['size'])} sent"
    if snapshots["receiving"]:
        got = snapshots["receiving"]
        yield f"Copy from {got['from']}", f"{size(got['bytes'])} of {size(got['size'])}, {got['phase']}"
