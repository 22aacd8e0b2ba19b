"""What the package writes to the log: never what an application writes to its database."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_raftsqlite
from django_raftsqlite import dbapi
from tests.support.nodes import eventually, group, write

SECRET = "nobody may read this in a log"
ROOT = Path(django_raftsqlite.__file__).parent
LEVELS = {"info", "warning", "error", "exception", "critical", "log"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call that writes a log line above DEBUG."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_no_line_of_the_log_names_parameters() -> None:
    """By name: neither a statement's parameters, nor a transaction's payload, nor rows."""
    forbidden = {"parameters", "params", "payload", "rows", "statements", "command"}
    found = []
    for place, call in calls():
        names = {node.id for each in call.args for node in ast.walk(each) if isinstance(node, ast.Name)}
        names |= {node.attr for each in call.args for node in ast.walk(each) if isinstance(node, ast.Attribute)}
        if names & forbidden:
            found.append(f"{place}: {names & forbidden}")
    assert found == []


KEYS = {"raft_event", "raft_node", "raft_member", "raft_index", "raft_term"}


def dicts(path: Path) -> Iterator[tuple[set[str], list[str]]]:
    """The keys of each dictionary with a "raft_event", and the events that it may name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Dict):
            continue
        pairs = zip(node.keys, node.values, strict=True)
        entries = {key.value: value for key, value in pairs if isinstance(key, ast.Constant)}
        if "raft_event" not in entries:
            continue
        event = entries["raft_event"]
        if isinstance(event, ast.Constant):
            yield set(entries), [event.value]
        else:
            assert ast.unparse(event) == "f'member_{change}'"
            changes = ("added", "promoted", "learner", "readmitted", "removed")
            yield set(entries), [f"member_{change}" for change in changes]


def test_the_keys_are_stable_and_each_event_is_documented() -> None:
    text = (ROOT.parent / "docs" / "metrics.md").read_text()
    rows = [
        line.split("|")[1] for line in text.partition("| `raft_event` |")[2].splitlines() if line.startswith("| `")
    ]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    found = set()
    for path in ROOT.rglob("*.py"):
        for keys, events in dicts(path):
            assert keys <= KEYS, path
            found |= set(events)
    assert found == documented


def test_every_logger_is_below_the_packages_own() -> None:
    named = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "getLogger":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path}: the name is written out"
                named.add(str(name.value))
    assert len(named) > 2
    assert all(name.startswith("django_raftsqlite.") for name in named), named


def test_what_is_written_is_in_no_log_whatever_becomes_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Done, refused, in conflict, lost with its leader, on a suspect node."""
    caplog.set_level(logging.INFO, "django_raftsqlite")
    with group(tmp_path, 3, durable=False, on_divergence="stop") as trio:
        leader = trio.nodes[trio.leader()]
        write(leader, "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT UNIQUE)")
        write(leader, "INSERT INTO t VALUES (1, ?)", SECRET)
        with pytest.raises(Exception, match="UNIQUE"):
            write(leader, "INSERT INTO t VALUES (2, ?)", SECRET)
        connection = dbapi.connect(leader.config, node=leader)
        connection.execute("BEGIN")
        connection.execute("SELECT a FROM t WHERE a = ?", (SECRET,)).fetchall()
        write(leader, "UPDATE t SET a = a || ?", SECRET)
        with pytest.raises(dbapi.TransactionConflict) as conflict:
            connection.execute("INSERT INTO t VALUES (3, ?)", (SECRET,))
        assert SECRET not in str(conflict.value)
        connection.close()
        trio.settle()
        hosts = [trio.host(number) for number in range(3)]
        eventually(lambda: any(host._measures._ready for host in hosts), "a node is ready")
        victim = trio.follower()
        trio.host(victim)._distrust("a test says so")
        leader.close()
    told = [record for record in caplog.records if record.name.startswith("django_raftsqlite.")]
    events = {record.raft_event for record in told if hasattr(record, "raft_event")}
    assert {"leader_changed", "node_ready", "session_began", "node_suspect"} <= events
    for record in told:
        assert SECRET not in record.getMessage()
        assert SECRET not in (record.exc_text or "")
