"""The supervisor of a local cluster, with programs that are not Django."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.management import supervisor as module
from django_raftsqlite.management.child import Child, Program, describe_exit
from django_raftsqlite.management.supervisor import Report, Supervisor
from tests.support.processes import alive

DEADLINE = 30.0

# Says hello, then obeys the files in its folder: "exit" ends it with that status, "stubborn" ignores SIGINT.
PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
if (folder / "stubborn").exists():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
(folder / "pids").open("a").write(f"{os.getpid()}\\n")
try:
    print("hello from", folder.name, flush=True)
    while not (folder / "exit").exists():
        time.sleep(0.02)
    status = int((folder / "exit").read_text() or 0)
    (folder / "exit").unlink()
    sys.exit(status)
except KeyboardInterrupt:
    print("goodbye", flush=True)
    print("without newline", end="", flush=True)
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    return pytest.fail(f"not within {DEADLINE:g} s: {what}")


class Cluster:
    """Three fake nodes under a supervisor in a thread of its own."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.script = folder / "program.py"
        self.script.write_text(PROGRAM)
        self.names = ["node1", "node2", "node3"]
        for name in [*self.names, "task"]:
            (folder / name).mkdir()
        self.lines: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.leader: str | None = "node1"
        self.term = 1
        self.silent: set[str] = set()
        self.supervisor = Supervisor(
            [self.program(name) for name in self.names],
            probe=self.probe,
            show=lambda name, line: self.lines.append((name, line)),
            announce=self.said.append,
            poll=0.02,
            **options,
        )
        self.status: int | None = None
        self.thread = threading.Thread(target=self._run)

    def program(self, name: str) -> Program:
        return Program(name, (str(self.script), str(self.folder / name)), {"NODE": name})

    def _run(self) -> None:
        self.status = self.supervisor.run()

    def probe(self, name: str) -> Report | None:
        asked = time.monotonic()
        pids = self.pids(name)
        if name in self.silent or not pids or not alive(pids[-1]):
            return None
        return Report(asked, self.leader, self.term, commit_index=7, applied_index=7, serving=True)

    def pids(self, name: str) -> list[int]:
        try:
            return [int(line) for line in (self.folder / name / "pids").read_text().split()]
        except FileNotFoundError:
            return []

    def every_pid(self) -> list[int]:
        return [pid for name in self.names for pid in self.pids(name)]

    def start(self) -> None:
        self.thread.start()
        until(lambda: all(self.pids(name) for name in self.names), "every node runs")

    def end(self) -> None:
        self.supervisor.stop()
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: Any) -> Iterator[Callable[..., Cluster]]:
    monkeypatch.setattr(module, "FIRST_DELAY", 0.05)
    clusters: list[Cluster] = []

    def made(**options: Any) -> Cluster:
        cluster = Cluster(tmp_path, **options)
        clusters.append(cluster)
        return cluster

    yield made
    for cluster in clusters:
        if cluster.thread.is_alive():
            cluster.supervisor.stop()
            cluster.supervisor.stop()
            cluster.thread.join(DEADLINE)
        assert not [pid for pid in cluster.every_pid() if alive(pid)]


def test_stopping_interrupts_every_child_and_is_a_success(make: Any) -> None:
    """Each ends as after Ctrl-C, says its last words, and none is left."""
    cluster = make()
    cluster.start()
    until(lambda: len(cluster.lines) == 3, "three greetings")
    cluster.end()
    assert cluster.status == 0
    for name in cluster.names:
        assert [line for who, line in cluster.lines if who == name] == [
            f"hello from {name}",
            "goodbye",
            "without newline",
        ]
    assert not [pid for pid in cluster.every_pid() if alive(pid)]


def test_a_child_that_ignores_the_interrupt_is_killed(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "STOP_GRACE", 0.2)
    cluster = make()
    (tmp_path / "node2" / "stubborn").touch()
    cluster.start()
    cluster.end()
    assert cluster.status == 0
    assert not [pid for pid in cluster.every_pid() if alive(pid)]


def test_a_second_stop_does_not_wait(make: Any, tmp_path: Path) -> None:
    cluster = make()
    (tmp_path / "node2" / "stubborn").touch()
    cluster.start()
    cluster.supervisor.stop()
    cluster.end()
    assert not [pid for pid in cluster.every_pid() if alive(pid)]


def test_a_dead_child_is_reported_and_restarted(make: Any) -> None:
    cluster = make()
    cluster.start()
    (first,) = cluster.pids("node2")
    os.kill(first, signal.SIGKILL)
    until(lambda: len(cluster.pids("node2")) == 2, "node2 is restarted")
    assert f"node2 (pid {first}) was ended by SIGKILL; it is restarted in 0.05 s" in cluster.said
    assert len(cluster.pids("node1")) == len(cluster.pids("node3")) == 1


def test_a_child_that_keeps_dying_is_restarted_less_and_less_often(make: Any, tmp_path: Path) -> None:
    cluster = make()
    cluster.start()
    for count in range(1, 4):
        (tmp_path / "node3" / "status").write_text("3")
        (tmp_path / "node3" / "status").rename(tmp_path / "node3" / "exit")  # never seen half written
        until(lambda count=count: len(cluster.pids("node3")) > count, "node3 is restarted")
    said = [text for text in cluster.said if text.startswith("node3")]
    assert [text.rpartition(" in ")[2] for text in said] == ["0.05 s", "0.1 s", "0.2 s"]
    assert "ended with exit status 3" in said[0]


def test_without_restart_it_ends_with_its_last_child(make: Any) -> None:
    cluster = make(restart=False)
    cluster.start()
    for name in cluster.names:
        os.kill(cluster.pids(name)[0], signal.SIGKILL)
    cluster.thread.join(DEADLINE)
    assert cluster.status == 1
    assert len(cluster.every_pid()) == 3
    assert sum("it is not restarted" in text for text in cluster.said) == 3


def test_each_new_leader_is_announced_once(make: Any) -> None:
    cluster = make()
    cluster.leader = None
    cluster.start()
    cluster.leader = "node3"
    until(lambda: cluster.said, "an announcement")
    cluster.leader, cluster.term = "node1", 4
    until(lambda: len(cluster.said) == 2, "another announcement")
    # An old leader that does not know yet is no news.
    cluster.leader, cluster.term = "node3", 1
    cluster.end()
    assert cluster.said == ["node3 is the leader (term 1)", "node1 is the leader (term 4)"]


def test_tasks_run_once_in_order_and_only_with_a_leader(make: Any, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("import sys; print('task', sys.argv[1], flush=True)")
    cluster = make(afterwards=[Program(name, (str(task), name)) for name in ("migrate", "seed")])
    cluster.leader = None
    cluster.start()
    asked: list[str] = []
    original = cluster.probe
    cluster.supervisor._watch._probe = lambda name: (asked.append(name), original(name))[1]
    until(lambda: len(asked) > 9, "three rounds without a leader")
    assert not [line for who, line in cluster.lines if who in {"migrate", "seed"}]
    cluster.leader = "node2"
    until(lambda: ("seed", "task seed") in cluster.lines, "the last task")
    cluster.leader, cluster.term = "node3", 9
    until(lambda: "node3 is the leader (term 9)" in cluster.said, "another leader")
    cluster.end()
    assert [line for _, line in cluster.lines if line.startswith("task")] == ["task migrate", "task seed"]


def test_a_task_that_fails_is_reported_and_ends_the_tasks(make: Any, tmp_path: Path) -> None:
    task = tmp_path / "task.py"
    task.write_text("import sys; sys.exit(3)")
    cluster = make(afterwards=[Program(name, (str(task),)) for name in ("migrate", "seed")])
    cluster.start()
    until(lambda: "migrate ended with exit status 3" in cluster.said, "the failure")
    cluster.end()
    assert not [text for text in cluster.said if text.startswith("seed")]


def test_a_roll_restarts_the_leader_last_and_never_two_at_once(make: Any) -> None:
    """The next child is not touched before the one in front is back."""
    cluster = make()
    cluster.leader = "node2"
    cluster.start()
    until(lambda: cluster.said, "the leader is known")
    cluster.silent = {"node1"}
    cluster.supervisor.roll()
    until(lambda: len(cluster.pids("node1")) == 2, "node1 is restarted")
    assert [len(cluster.pids(name)) for name in cluster.names] == [2, 1, 1]
    cluster.silent = set()
    until(lambda: "every node runs the new code" in cluster.said, "the end of the roll")
    assert [text for text in cluster.said if text.startswith("restarting")] == [
        "restarting node1",
        "restarting node3",
        "restarting node2",
    ]
    assert [len(cluster.pids(name)) for name in cluster.names] == [2, 2, 2]
    assert not [text for text in cluster.said if "it is restarted" in text]


def test_a_roll_ends_when_a_child_does_not_come_back(make: Any, tmp_path: Path) -> None:
    """Its code is broken; the others go on with the old one, so that the group has its quorum."""
    cluster = make()
    cluster.start()
    until(lambda: cluster.said, "the leader is known")
    (tmp_path / "program.py").write_text("broken(")
    cluster.supervisor.roll()
    until(lambda: [text for text in cluster.said if "did not come back" in text], "the roll ends")
    assert [len(cluster.pids(name)) for name in cluster.names] == [1, 1, 1]
    assert alive(cluster.pids("node1")[0]) and alive(cluster.pids("node3")[0])
    (tmp_path / "program.py").write_text(PROGRAM)
    cluster.supervisor.roll()
    until(lambda: "every node runs the new code" in cluster.said, "the next roll")


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """kill -9 of the parent leaves no orphan."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    folder = tmp_path / "node1"
    folder.mkdir()
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from django_raftsqlite.management.child import Child, Program\n"
            "child = Child(Program('node1', tuple(sys.argv[1:])))\n"
            "time.sleep(600)",
            str(script),
            str(folder),
        ]
    )
    try:
        until(lambda: (folder / "pids").exists() and (folder / "pids").read_text().strip(), "the child runs")
        pid = int((folder / "pids").read_text())
        assert alive(pid)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not alive(pid), "the child ended")


def test_a_child_sees_its_own_arguments_environment_and_path(tmp_path: Path) -> None:
    """As if python had run it: __main__, sys.argv, sys.path[0], and SIGINT that raises KeyboardInterrupt."""
    script = tmp_path / "shown.py"
    script.write_text(
        "import os, signal, sys\n"
        "print(__name__, sys.argv, sys.path[0], os.environ['NODE'])\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
        "sys.exit(4)\n"
    )
    child = Child(Program("x", (str(script), "a", "-b"), {"NODE": "me"}))
    status = until(child.ended, "the child ended")
    lines, _ = child.read_lines()
    child.close()
    assert lines == [f"__main__ {[str(script), 'a', '-b']} {tmp_path} me", "True"]
    assert status == 4


def test_a_child_may_be_a_module(tmp_path: Path) -> None:
    child = Child(Program("x", ("-m", "platform", "--terse")))
    assert until(lambda: child.ended() is not None, "the child ended")
    lines, at_end = child.read_lines()
    assert (child.ended(), len(lines), at_end) == (0, 1, True)
    child.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "ended with exit status 0"), (-9, "was ended by SIGKILL"), (-200, "was ended by signal 200")],
)
def test_an_exit_status_is_said_in_words(status: int, words: str) -> None:
    assert describe_exit(status) == words
