"""``manage.py raft`` and ``manage.py runcluster``, ``dbshell``, and what processes of one node do together."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections

from django_raftsqlite.client import DatabaseClient
from django_raftsqlite.exceptions import Unavailable
from django_raftsqlite.management.commands import raft, runcluster
from django_raftsqlite.management.status import has_leader, render
from django_raftsqlite.management.systemd import notify
from tests.support.printing import Printing

TESTPROJECT = Path(__file__).resolve().parents[3] / "testproject"
DEADLINE = 30.0

STATUS: dict[str, Any] = {
    "node": "127.0.0.1:7102",
    "name": "/srv/n2/db.sqlite3",
    "role": "follower",
    "reason": None,
    "leader": "127.0.0.1:7101",
    "leader_reachable": True,
    "term": 3,
    "commit_index": 90,
    "applied_index": 88,
    "version": 77,
    "digest": "d" * 64,
    "protocol": {"used": 2, "speaks": [1, 2], "waits_for": []},
    "members": [
        {"address": "127.0.0.1:7101", "role": "leader", "reachable": True, "applied": 90, "lag": 0, "version": 78},
        {"address": "127.0.0.1:7103", "role": None, "reachable": False, "applied": None, "lag": None},
    ],
    "host": {"pid": 4711, "attached": [1, 2]},
    "lease": None,
}


class FakeNode:
    """A node that is looked at only."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status
        self.closed = False

    def status(self) -> dict[str, Any]:
        return self._status

    def close(self) -> None:
        self.closed = True


def shown(*arguments: str) -> str:
    out = StringIO()
    call_command("raft", *arguments, stdout=out)
    return out.getvalue()


class VerifyingNode(FakeNode):
    """Its members answer one after the other, and the last one forgets what it found."""

    def __init__(self, *digests: str | None, **last: Any) -> None:
        super().__init__({})
        self._digests = digests
        self._last = last
        self._asked = 0

    def verify(self, *, timeout: float) -> str:
        assert timeout > 0
        return "aa"

    def status(self) -> dict[str, Any]:
        self._asked += 1
        members = []
        for number, digest in enumerate(self._digests):
            found = {"id": "aa", "index": 90, "digest": digest, "bytes": 5, "seconds": 0.1, "problem": None}
            verified: dict[str, Any] = found if number < self._asked else {**found, "id": "of an earlier one"}
            members.append({"address": f"n{number}", "reachable": True, "failed": None, "verified": verified})
        members[-1].update(self._last)
        if self._asked > len(members):
            members[0]["verified"] = None
        return {"members": members}


@pytest.mark.parametrize(
    ("node", "status", "answers"),
    [
        (VerifyingNode("d" * 64, "d" * 64, "d" * 64), 0, ["equal", "equal", "equal"]),
        (VerifyingNode("d" * 64, "e" * 64, "d" * 64), 1, ["equal", "DIFFERENT", "equal"]),
        (VerifyingNode("d" * 64, "e" * 64), 1, ["differs", "differs"]),
        (VerifyingNode("d" * 64, "d" * 64, None, reachable=False, verified=None), 2, ["equal", "equal", "no answer"]),
        (VerifyingNode("d" * 64, "d" * 64, None, suspect="why", verified=None), 2, ["equal", "equal", "suspect"]),
        (VerifyingNode("d" * 64, "d" * 64, None), 2, ["equal", "equal", "at work"]),
    ],
)
def test_verify_shows_what_each_member_found_and_says_so_by_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, node: VerifyingNode, status: int, answers: list[str]
) -> None:
    monkeypatch.setattr(raft, "attach_node", lambda _config: node)
    for form in ("table", "json"):
        out = StringIO()
        node._asked = 0
        arguments = ["raft", "verify", "--timeout", "1", "--format", form]
        if status:
            with pytest.raises(SystemExit) as exit_:
                call_command(*arguments, stdout=out)
            assert exit_.value.code == status
        else:
            call_command(*arguments, stdout=out)
        if form == "json":
            assert [each["answer"] for each in json.loads(out.getvalue())] == answers
        else:
            lines = out.getvalue().splitlines()
            assert lines[0].split() == ["member", "content", "log", "index", "hash", "bytes", "seconds"]
            for line, answer in zip(lines[1:], answers, strict=False):
                assert answer in line
    assert node.closed


def test_snapshot_tells_what_the_host_did_or_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Node(FakeNode):
        refused: str | None = None

        def snapshot(self, *, timeout: float) -> str:
            assert timeout == 3
            if self.refused is not None:
                raise Unavailable(self.refused, "too slow")
            return "it is cut"

    node = Node({})
    monkeypatch.setattr(raft, "attach_node", lambda _config: node)
    assert shown("snapshot", "--timeout", "3") == "it is cut\n"
    assert node.closed
    node.refused = "the disk is slow"
    with pytest.raises(CommandError, match="the disk is slow") as error:
        shown("snapshot", "--timeout", "3")
    assert error.value.returncode == 1


class Manage(Printing):
    """A ``manage.py`` in a process of its own."""

    def __init__(self, data: Path, *arguments: str) -> None:
        # What `raft` says is seen at once, also in a pipe; print() in a shell is not.
        unbuffered = [] if arguments[0] == "raft" else ["-u"]
        super().__init__(
            [sys.executable, *unbuffered, "-W", "error", "manage.py", *arguments],
            folder=TESTPROJECT,
            environment={"TESTPROJECT_DATA": str(data)},
            deadline=DEADLINE,
        )


@pytest.fixture
def manage(tmp_path: Path) -> Iterator[Callable[..., Manage]]:
    started: list[Manage] = []

    def start(*arguments: str) -> Manage:
        started.append(Manage(tmp_path, *arguments))
        return started[-1]

    yield start
    for process in started:
        process.close()


# raft status -------------------------------------------------------------------------------------------------


def test_status_is_an_aligned_table_of_the_node_and_its_members() -> None:
    assert render("default", STATUS).splitlines() == [
        "database       default  /srv/n2/db.sqlite3",
        "node           127.0.0.1:7102",
        "role           follower",
        "leader         127.0.0.1:7101",
        "term           3",
        "commit index   90",
        "applied index  88",
        "version        77",
        f"digest         {'d' * 64}",
        "protocol       2",
        "host           process 4711, 2 attached",
        "write lease    free",
        "",
        "member          role    reachable  applied  lag  version  digest",
        "127.0.0.1:7101  leader  yes        90       0    78       ?",
        "127.0.0.1:7103  ?       NO         ?        ?    ?        ?",
    ]


def test_the_status_says_how_far_the_others_are() -> None:
    members = [
        {"address": "a:1", "reachable": True, "round_trip": None},
        {"address": "b:1", "reachable": True, "round_trip": 0.0004},
        {"address": "c:1", "reachable": False, "round_trip": 0.1502},
    ]
    far = render("x", {**STATUS, "election_timeout": 1.502, "members": members})
    assert "elections      after 1.502 s; round trips: c:1 150 ms\n" in far
    assert "elections      after 0.4 s\n" in render("x", {**STATUS, "election_timeout": 0.4, "members": members[:2]})


def test_the_status_says_for_whom_the_next_protocol_waits() -> None:
    waits = {"used": 1, "speaks": [1, 2], "waits_for": ["a:1 speaks 1 at most", "b:1 was not heard of"]}
    line = "protocol       1, and 2 when all members speak it: a:1 speaks 1 at most, b:1 was not heard of"
    assert line in render("x", {**STATUS, "protocol": waits})


def test_the_status_says_who_is_reluctant_to_lead() -> None:
    member = {"address": "127.0.0.1:7103", "role": "follower", "reachable": True, "reluctant": True}
    text = render("x", {**STATUS, "host": {"pid": 4711, "reluctant": True}, "members": [member]})
    assert "host           process 4711, reluctant to lead" in text
    assert "127.0.0.1:7103  follower, reluctant to lead  yes" in text


def test_status_shows_how_much_is_kept_of_requests() -> None:
    kept = {**STATUS, "origins": 3, "outcomes": 12, "parted": 0}
    assert "requests       12 outcomes kept for 3 origins\n" in render("x", kept)
    assert "12 outcomes kept for 3 origins, parts of 2 transactions\n" in render("x", {**kept, "parted": 2})


def test_status_shows_the_size_of_the_wal_and_who_keeps_it() -> None:
    assert "WAL            96.0 MiB" in render("x", {**STATUS, "wal_bytes": 96 * 2**20, "oldest_snapshot": None})
    table = render("x", {**STATUS, "wal_bytes": 96 * 2**20, "oldest_snapshot": 75.3})
    assert "WAL            96.0 MiB, oldest reader of process 4711 since 75 s" in table


def test_status_shows_the_log_and_snapshots_on_their_way() -> None:
    log = {"entries": 301, "first_index": 1700, "bytes": 5 * 2**19}
    assert "Raft log       301 entries from 1700 on, 2.5 MiB\n" in render("x", {**STATUS, "log": log})
    assert "2.5 MiB, cut 2 min ago\n" in render("x", {**STATUS, "log": {**log, "synced_ago": 130.0}})
    transfer = {"index": 12, "bytes": 2**20, "size": 4 * 2**20}
    told = {"sending": [{"to": "a:1", **transfer}], "receiving": {"from": "b:2", "phase": "receiving", **transfer}}
    table = render("x", {**STATUS, "snapshots": {**told, "problem": "no space"}})
    assert "snapshot       to a:1: 1.0 of 4.0 MiB (log index 12) sent\n" in table
    assert "snapshot       from b:2: 1.0 of 4.0 MiB (log index 12) here, receiving\n" in table
    assert "snapshot       no space\n" in table


def test_a_failed_node_says_why() -> None:
    assert "role           failed (disk full)" in render("x", {**STATUS, "role": "failed", "reason": "disk full"})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({}, True), ({"leader": None}, False), ({"leader_reachable": False}, False)],
)
def test_a_leader_counts_only_in_reach(changed: dict[str, Any], expected: bool) -> None:
    assert has_leader({**STATUS, **changed}) is expected


@pytest.mark.usefixtures("database")
def test_status_tells_of_the_node_that_this_process_hosts() -> None:
    connections["default"].ensure_connection()
    connections["default"].connection.execute("SELECT 1")
    assert "leader         localhost" in shown("status")
    status = json.loads(shown("status", "--format", "json"))
    assert (status["role"], status["host"]["pid"]) == ("leader", os.getpid())


def test_status_exits_with_1_without_a_leader(monkeypatch: Any) -> None:
    node = FakeNode({**STATUS, "leader": None})
    monkeypatch.setattr(raft, "attach_node", lambda config: node)
    with pytest.raises(SystemExit) as caught:
        shown("status")
    assert caught.value.code == 1
    assert node.closed


def test_status_never_hosts(manage: Any, tmp_path: Path) -> None:
    """It fails when nobody hosts the node, and leaves no trace."""
    process = manage("raft", "status")
    assert process.wait() == 1
    assert "no process hosts the node of" in process.lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("alias", "message"), [("nope", "there is no database 'nope'"), ("plain", "it has no node")])
def test_only_databases_of_this_backend_have_a_node(alias: str, message: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(connections.settings, "plain", {"ENGINE": "django.db.backends.sqlite3"})
    with pytest.raises(CommandError, match=message):
        shown("status", "--database", alias)


def test_wrong_settings_are_said_before_anything_is_done(monkeypatch: Any) -> None:
    settings = {**connections.settings["default"], "OPTIONS": {"reads": "x"}}
    monkeypatch.setitem(connections.settings, "wrong", settings)
    with pytest.raises(ImproperlyConfigured, match="reads"):
        shown("status", "--database", "wrong")


def test_a_verb_is_needed() -> None:
    with pytest.raises(CommandError, match="VERB"):
        shown()
    with pytest.raises(CommandError, match="invalid choice"):
        shown("status", "--format", "xml")


def test_settings_may_be_named_after_the_verb(manage: Any) -> None:
    process = manage("raft", "status", "--settings", "project.settings")
    process.wait()
    assert "no process hosts" in process.lines[0]


# raft node ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_is_hosted_until_it_is_told_to_stop(manage: Any, number: int) -> None:
    process = manage("raft", "node")
    process.wait_for("hosting localhost")
    status = manage("raft", "status")
    assert status.wait() == 0
    assert f"host           process {process.pid}" in status.lines
    assert process.end(number) == 0
    assert process.lines[-1] == "stopped hosting localhost"


def test_a_second_host_waits_and_takes_over(manage: Any) -> None:
    """Also when the first one is killed."""
    first = manage("raft", "node")
    first.wait_for("hosting localhost")
    second = manage("raft", "node")
    assert second.wait_for("waiting to take over") == (f"process {first.pid} hosts localhost: waiting to take over")
    first.end(signal.SIGKILL)
    second.wait_for(r"hosting localhost \(")
    assert second.end(signal.SIGTERM) == 0


@pytest.fixture
def service_manager(monkeypatch: Any) -> Iterator[socket.socket]:
    """Where systemd would listen for what its services say."""
    with (
        tempfile.TemporaryDirectory(prefix="notify-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        listener.bind(f"{folder}/notify")
        listener.settimeout(DEADLINE)
        yield listener


def test_systemd_is_told_when_the_node_is_ready_and_when_it_stops(manage: Any, service_manager: Any) -> None:
    """Type=notify: a service that waits to take over is ready as well, else systemd would end it."""
    first = manage("raft", "node")
    assert service_manager.recv(1000).startswith(b"READY=1\nSTATUS=hosting localhost (")
    second = manage("raft", "node")
    waiting = f"READY=1\nSTATUS=process {first.pid} hosts localhost: waiting to take over"
    assert service_manager.recv(1000) == waiting.encode()
    assert second.end(signal.SIGTERM) == 0
    assert service_manager.recv(1000) == b"STOPPING=1"
    assert first.end(signal.SIGTERM) == 0
    assert service_manager.recv(1000) == b"STOPPING=1"


def test_a_service_manager_that_is_gone_does_not_keep_the_node_from_its_work(
    manage: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    process = manage("raft", "node")
    process.wait_for(r"systemd was not told READY=1 \(NOTIFY_SOCKET\): ")
    assert process.end(signal.SIGTERM) == 0


def test_an_abstract_socket_of_the_service_manager_is_found(monkeypatch: Any) -> None:
    name = f"raftsqlite-notify-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")  # nobody asked


def test_processes_share_the_node_of_the_one_that_hosts_it(manage: Any) -> None:
    """Migrations and writes of others go through it, and what they wrote stays."""
    host = manage("raft", "node")
    host.wait_for("hosting localhost")
    assert manage("migrate").wait() == 0
    create = "from ledger.models import Event; print('created', Event.objects.create(text='one').pk)"
    manage("shell", "-c", create).wait_for("created 1")
    assert host.end(signal.SIGTERM) == 0
    count = manage("shell", "-c", "from ledger.models import Event; print('there are', Event.objects.count())")
    count.wait_for("there are 1")
    assert count.wait() == 0


FORKING = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from django.core.management import call_command
from django.db import transaction
from ledger.models import Event
call_command("migrate", verbosity=0)
Event.objects.create(text="parent")
if os.fork() == 0:
    status = 1
    try:
        assert list(Event.objects.values_list("text", flat=True)) == ["parent"]
        with transaction.atomic():
            Event.objects.create(text="child")
        status = 0
    finally:
        os._exit(status)
_, status = os.wait()
print("the child ended with", os.waitstatus_to_exitcode(status))
Event.objects.create(text="parent again")
print(list(Event.objects.values_list("text", flat=True)))
"""


def test_a_forked_child_connects_anew_and_writes_through_its_parent(manage: Any) -> None:
    """As gunicorn's workers do with --preload."""
    process = manage("shell", "-c", FORKING)
    process.wait_for("the child ended with 0")
    process.wait_for(r"\['parent', 'child', 'parent again'\]")
    assert process.wait() == 0


# runcluster --------------------------------------------------------------------------------------------------


def test_a_cluster_needs_a_database_of_this_backend(monkeypatch: Any) -> None:
    plain = {**connections.settings["default"], "ENGINE": "django.db.backends.sqlite3"}
    monkeypatch.setitem(connections.settings, "default", plain)
    with pytest.raises(CommandError, match='no database in DATABASES has the ENGINE "django_raftsqlite"'):
        call_command("runcluster")


def test_a_cluster_that_cannot_be_laid_out_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--nodes is 0"):
        call_command("runcluster", "--nodes", "0", "--dir", str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_a_node_inherits_what_the_environment_says_for_all(monkeypatch: Any, tmp_path: Path) -> None:
    """Only its place in the cluster is its own."""
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", json.dumps({"CONN_MAX_AGE": 5, "OPTIONS": {"timeout": 9, "node": "x"}}))
    nodes = runcluster.plan_cluster(tmp_path, nodes=1, port=8000, raft_port=7100, aliases=["default"])
    settings = runcluster._settings_of(nodes[0], "default")
    assert (settings["CONN_MAX_AGE"], settings["OPTIONS"]["timeout"]) == (5, 9)
    assert settings["OPTIONS"]["node"] == "127.0.0.1:7100"


@pytest.mark.parametrize(
    ("started", "expected"),
    [
        (["python", "manage.py", "runcluster", "--nodes", "1"], ["manage.py"]),
        (["python", "-Wdefault", "-m", "django", "runcluster"], ["-m", "django"]),
    ],
)
def test_nodes_are_started_as_the_cluster_was(started: list[str], expected: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(runcluster, "get_child_arguments", lambda: started)
    assert runcluster._manage() == expected


# dbshell -----------------------------------------------------------------------------------------------------


def test_the_shell_cannot_write_past_the_node(tmp_path: Path) -> None:
    """It is APSW's, read-only; its options stand before the file, SQL after it."""
    arguments, environment = DatabaseClient.settings_to_cmd_args_env(
        {"NAME": tmp_path / "a b?.sqlite3"}, ["-separator", ";", "-csv", "select 1"]
    )
    assert environment is None
    assert arguments == [
        sys.executable,
        "-m",
        "apsw",
        "-separator",
        ";",
        "-csv",
        f"file:{tmp_path}/a%20b%3F.sqlite3?mode=ro",
        "select 1",
    ]


def test_the_shell_reads_and_refuses_to_write(manage: Any) -> None:
    assert manage("migrate").wait() == 0
    process = manage("dbshell", "--", "select 'there are ' || count(*) from ledger_event")
    process.wait_for("there are 0")
    assert process.wait() == 0
    process = manage("dbshell", "--", "delete from ledger_event")
    process.wait_for("readonly")
    assert process.wait() == 1
