"""What the admin's page says in words about a status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_raftsqlite.amounts import rate, seconds, size
from django_raftsqlite.charts import nice, path
from django_raftsqlite.picture import picture

NOW = 1_800_000_000.0
PEERS = ["10.0.0.1:7100", "10.0.0.2:7100", "10.0.0.3:7100"]


def member(address: str, **told: Any) -> dict[str, Any]:
    return {
        "address": address,
        "role": "leader" if address == PEERS[0] else "follower",
        "reachable": True,
        "applied": 100,
        "lag": 0,
        "failed": None,
        "suspect": None,
        "verified": None,
        "reluctant": False,
        "applying": None,
        "round_trip": None if address == PEERS[0] else 0.0012,
        "clock_offset": None,
        "space": {"database": 10 * 2**20, "free": 50 * 2**30},
        "log_bytes": 3 * 2**20,
        "package": "0.1.0",
        "sqlite": "3.54.1",
        **told,
    }


def status(**told: Any) -> dict[str, Any]:
    of_members = told.pop("of", {})
    return {
        "node": PEERS[0],
        "name": "/srv/db.sqlite3",
        "role": "leader",
        "reason": None,
        "suspect": None,
        "differs": {},
        "leader": PEERS[0],
        "leader_reachable": True,
        "leader_since": 720.0,
        "ready": True,
        "term": 7,
        "commit_index": 100,
        "applied_index": 100,
        "version": 90,
        "lineage": "ab" * 16,
        "digest": "cd" * 16,
        "applying": None,
        "wal_bytes": 4 * 2**20,
        "oldest_snapshot": None,
        "members": [member(peer, **of_members.get(peer, {})) for peer in PEERS],
        "waiting_to_join": None,
        "problem": None,
        "election_timeout": 0.4,
        "protocol": {"used": 2, "speaks": [1, 2], "waits_for": []},
        "host": {"pid": 4711, "reluctant": False, "attached": [4712]},
        "lease": None,
        "waiting": 0,
        "queue": [],
        "origins": 2,
        "outcomes": 3,
        "parted": 0,
        "log": {"first_index": 1, "entries": 100, "bytes": 3 * 2**20, "synced_index": None, "synced_ago": None},
        "archive": None,
        "snapshots": {"behind": [], "sending": [], "receiving": None, "problem": None},
        "last_backup": {"time": NOW - 7200, "index": 50, "place": "backups", "file": "x"},
        **told,
    }


def archive(**told: Any) -> dict[str, Any]:
    """Of a group whose log is archived up to the last entry."""
    return {
        "name": "ef" * 16,
        "begun": 1,
        "index": 100,
        "behind": 0,
        "gap": None,
        "segments": 3,
        "problem": None,
        **told,
    }


def point(ago: float, **told: Any) -> dict[str, Any]:
    return {"ago": ago, "seconds": 2.0, "writes": 10, "commits": 5, "p50": 0.001, "p99": 0.01, **told}


def warned(told: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(each.text, each.grave) for each in picture("default", told, [], NOW).warnings]


def test_a_sound_group_has_nothing_to_warn_of() -> None:
    shown = picture("default", status(), [point(2.0), point(0.0)], NOW)
    assert shown.warnings == []
    assert shown.summary == "All is well: 10.0.0.1:7100 leads, 3 of 3 members are in reach."
    facts = {title: (value, below) for title, value, below in shown.facts}
    assert facts["Leader"] == ("10.0.0.1:7100", "for 12 min, term 7")
    assert facts["Writes"] == ("5.0 /s", "committed by the group")
    assert facts["Commit latency"] == ("1.0 ms", "99 % within 10 ms")
    assert facts["Last backup"] == ("2 h ago", "log index 50, backups")
    assert [(row.state, row.round_trip) for row in shown.members] == [
        ("this node", "\N{EN DASH}"),
        ("in reach", "1.2 ms"),
        ("in reach", "1.2 ms"),
    ]


@pytest.mark.parametrize(
    ("told", "text", "grave"),
    [
        ({"role": "failed", "reason": "the disk is full"}, "the disk is full", True),
        ({"suspect": "something else wrote"}, "something else wrote", True),
        ({"differs": {PEERS[1]: "nobody can tell who is wrong"}}, "nobody can tell who is wrong", True),
        ({"leader": None}, "No leader is in reach", True),
        ({"leader_reachable": False}, "No leader is in reach", True),
        ({"ready": False}, "has yet to catch up", False),
        ({"of": {PEERS[1]: {"reachable": False}}}, "10.0.0.2:7100. One more lost", False),
        (
            {"of": {peer: {"reachable": False} for peer in PEERS[1:]}},
            "10.0.0.2:7100, 10.0.0.3:7100. No majority is left.",
            True,
        ),
        ({"problem": "nobody answers"}, "nobody answers", False),
        ({"of": {PEERS[1]: {"failed": "its log"}}}, "10.0.0.2:7100 stopped itself: its log", True),
        ({"of": {PEERS[1]: {"suspect": "its file"}}}, "10.0.0.2:7100 serves nothing", True),
        ({"of": {PEERS[1]: {"lag": 5000}}}, "has yet to apply 5000 log entries", False),
        ({"of": {PEERS[1]: {"clock_offset": -90.0}}}, "The clock of 10.0.0.2:7100 is 2 min behind.", False),
        ({"of": {PEERS[1]: {"sqlite": "3.50.0"}}}, "different versions of SQLite: 3.50.0, 3.54.1", False),
        ({"of": {PEERS[1]: {"space": {"database": 2**30, "free": 2**30}}}}, "has 1.0 GiB left", False),
        ({"of": {PEERS[1]: {"verified": {"index": 1, "digest": None, "problem": "I/O"}}}}, "could not verify", False),
        ({"applying": {"index": 1, "seconds": 75.0, "statement": "VACUUM"}}, "since 1 min", False),
        ({"oldest_snapshot": 600.0, "wal_bytes": 2**30}, "A reader that is 10 min old", False),
        ({"last_backup": None}, "No backup has been taken", False),
        (
            {"last_backup": {"time": NOW - 30 * 86400, "index": 1, "place": "x"}},
            "The last backup is 30 days old.",
            False,
        ),
        ({"snapshots": {"sending": [], "receiving": None, "problem": "no space"}}, "no space", False),
        ({"archive": archive(problem="the log cannot be archived: no route")}, "no route", False),
        (
            {"archive": archive(gap=77)},
            "The archive lacks what was committed before log index 77: take a backup, since moments before the next "
            "one cannot all be restored.",
            False,
        ),
    ],
)
def test_each_fault_is_told_in_words(told: dict[str, Any], text: str, grave: bool) -> None:
    found = warned(status(**told))
    assert [each for each in found if text in each[0]], found
    assert [each[1] for each in found if text in each[0]] == [grave]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, ("none yet", "the Raft log has all since its beginning")),
        (
            {"log": {"first_index": 81, "entries": 20, "bytes": 9, "synced_index": 90, "synced_ago": 130.0}},
            ("2 min ago", "the Raft log begins at index 81"),
        ),
        (
            {"log": {"first_index": 81, "entries": 20, "bytes": 9, "synced_index": None, "synced_ago": None}},
            ("at log index 81", "before this process hosted the node"),
        ),
    ],
)
def test_the_last_snapshot_is_told(told: dict[str, Any], shown: tuple[str, str]) -> None:
    assert fact("Last snapshot", status(**told)) == shown


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        (None, ("none", 'OPTIONS["archive"] is not set')),
        (archive(name=None, index=None, behind=None), ("not begun", "it begins with a leader")),
        (archive(index=None, behind=None), ("not known", "the leader has yet to look into the storage")),
        (archive(), ("0 behind", "log entries; it ends at index 100")),
        (archive(index=60, behind=40), ("40 behind", "log entries; it ends at index 60")),
        (archive(gap=77), ("a gap", "before log index 77; it ends at index 100")),
    ],
)
def test_how_far_the_archive_is_is_told(told: dict[str, Any] | None, shown: tuple[str, str]) -> None:
    assert fact("Archive", status(archive=told)) == shown


def fact(title: str, told: dict[str, Any]) -> tuple[str, str]:
    """Value and words of one of the boxes."""
    ((_, value, below),) = [each for each in picture("default", told, [], NOW).facts if each[0] == title]
    return value, below


def test_a_learner_counts_for_no_majority() -> None:
    learner = {"role": "learner"}
    away = status(of={PEERS[2]: {**learner, "reachable": False}})
    assert warned(away) == [("Not in reach: 10.0.0.3:7100. One more lost, and nothing can be written.", False)]
    both = status(of={PEERS[1]: {"reachable": False}, PEERS[2]: learner})
    assert warned(both) == [("Not in reach: 10.0.0.2:7100. No majority is left.", True)]


def test_graver_warnings_come_first_and_the_summary_says_so() -> None:
    shown = picture("default", status(last_backup=None, leader=None), [], NOW)
    assert [each.grave for each in shown.warnings] == [True, False]
    assert shown.summary == "Something does not work: there is no leader, 3 of 3 members are in reach."


@pytest.mark.parametrize(
    ("digests", "found"),
    [
        (["a", "a", "a"], "all equal"),
        (["a", "b", "a"], "DIFFERENT"),
        (["a", None, "a"], "2 of 3 done"),
        (["a", "gone", "a"], "2 of 3 done"),
    ],
)
def test_what_a_verification_found_is_told(digests: list[str | None], found: str) -> None:
    verified = {
        peer: {"verified": None if digest == "gone" else {"index": 9, "digest": digest, "problem": None}}
        for peer, digest in zip(PEERS, digests, strict=True)
    }
    facts = picture("default", status(of=verified), [], NOW).facts
    assert ("Verified", found, "at log index 9") in facts


def test_a_chart_is_a_path_its_numbers_and_a_sentence() -> None:
    recent = [point(4.0, writes=0), point(2.0, writes=40), point(0.0, writes=20, p50=None, p99=None)]
    writes, latency = picture("default", status(), recent, NOW).charts
    assert json.loads(writes.points) == [[4.0, 0.0], [2.0, 20.0], [0.0, 10.0]]
    assert json.loads(latency.points)[-1] == [0.0, None, None]
    assert (writes.now, writes.top) == ("10/s", "20/s")
    assert writes.spoken == "Writes per second over the last 1 min: now 10/s, at most 20/s."
    assert len(latency.lines) == 2
    assert latency.now == "\N{EN DASH}"


def test_an_empty_chart_is_no_fault() -> None:
    writes, latency = picture("default", status(), [], NOW).charts
    assert writes.lines[0].path == latency.lines[0].path == ""
    assert writes.spoken.endswith("at most 0/s.")


def test_a_path_runs_from_left_to_right_and_breaks_where_nothing_is_known() -> None:
    assert path([60.0, 30.0, 0.0], [0.0, 5.0, 10.0], 10.0, 60.0) == "M0.00 100.00h0.3L50.00 50.00L100.00 0.00"
    assert path([60.0, 30.0, 0.0], [0.0, None, 10.0], 10.0, 60.0) == "M0.00 100.00h0.3M100.00 0.00h0.3"
    assert path([61.0, 0.0], [3.0, 10.0], 10.0, 60.0) == "M100.00 0.00h0.3"


@pytest.mark.parametrize(
    ("oldest", "minutes"), [(4.0, 1), (60.0, 1), (61.0, 2), (200.0, 5), (599.0, 10), (4000.0, 10)]
)
def test_a_chart_is_as_wide_as_what_is_known_needs(oldest: float, minutes: int) -> None:
    writes, _ = picture("default", status(), [point(oldest), point(0.0)], NOW).charts
    assert writes.minutes == minutes


@pytest.mark.parametrize(
    ("value", "top"), [(0.0, 1.0), (1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (7.0, 10.0), (0.0013, 0.002), (4700.0, 5000.0)]
)
def test_the_top_of_a_chart_is_a_round_number(value: float, top: float) -> None:
    assert nice(value) == pytest.approx(top)


def test_amounts_are_written_as_people_read_them() -> None:
    shown = [seconds(value) for value in (0.0, 0.0004, 0.0123, 0.9999, 1.23, 42.0, 90.0, 7200.0, 90 * 3600.0)]
    assert shown == ["0.0 ms", "0.4 ms", "12 ms", "1.0 s", "1.2 s", "42 s", "2 min", "2 h", "4 days"]
    assert [size(value) for value in (None, 0, 812, 1536, 150 * 1024, 3 * 2**40)] == [
        "?",
        "0 B",
        "812 B",
        "1.5 KiB",
        "150 KiB",
        "3.0 TiB",
    ]
    assert [rate(value) for value in (0.0, 0.5, 12.3)] == ["0", "0.5", "12"]
