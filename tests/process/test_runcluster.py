"""``manage.py runcluster`` on a copy of the test project: three real nodes, killed, changed and found again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTPROJECT = Path(__file__).resolve().parents[2] / "testproject"
NODES = 3
DEADLINE = 60.0


def until(condition: Callable[[], Any], what: Callable[[], str]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    return pytest.fail(what())


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive ports that nobody listens on."""
    for first in range(20000 + os.getpid() % 5000, 32000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, sock in enumerate(sockets):
                sock.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        else:
            return first
        finally:
            for sock in sockets:
                sock.close()
    return pytest.fail("no free ports")


class Cluster:
    """A runcluster process and its output."""

    def __init__(self, project: Path, ports: int, *arguments: str) -> None:
        self.port = ports
        self.lines: list[str] = []
        command = [sys.executable, "manage.py", "runcluster", "--port", str(ports), "--raft-port", str(ports + NODES)]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=project,
            env={**os.environ, "TESTPROJECT_DATA": str(project / "data")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stdout)

    def wait_for(self, pattern: str, *, since: int = 0) -> re.Match[str]:
        def found() -> re.Match[str] | None:
            return next((match for line in self.lines[since:] if (match := re.search(pattern, line))), None)

        match: re.Match[str] = until(found, lambda: f"no {pattern!r} in:\n" + "\n".join(self.lines))
        return match

    def get(self, node: int, path: str, body: object = None) -> Any:
        """JSON from a node (1 to 3), or None while it does not answer."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port + node - 1}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=20) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            error.close()
            return None
        except OSError:
            return None

    def ready(self) -> dict[int, int]:
        """Wait until every node knows the leader; their process ids by number."""

        def statuses() -> dict[int, int] | None:
            found = {node: self.get(node, "/node.json") for node in range(1, NODES + 1)}
            if not all(status and status.get("leader") for status in found.values()):
                return None
            return {node: status["host"]["pid"] for node, status in found.items()}

        pids: dict[int, int] = until(statuses, lambda: "not every node answers:\n" + "\n".join(self.lines))
        return pids

    def events(self, node: int) -> list[str] | None:
        answer = self.get(node, "/api/events/")
        # A set: a request that was given up may have been committed, and was then sent again as a new one.
        return None if answer is None else sorted(set(answer["events"]))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert not self._reader.is_alive(), "somebody still holds the output: an orphan"
        return status


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    project = tmp_path / "project"
    shutil.copytree(TESTPROJECT, project, ignore=shutil.ignore_patterns("data", ".raftsqlite", "__pycache__"))
    ports = free_ports(2 * NODES)
    started: list[Cluster] = []

    def make(*arguments: str) -> Cluster:
        started.append(Cluster(project, ports, *arguments))
        return started[-1]

    yield make
    for cluster in started:
        if cluster.process.poll() is None:
            cluster.process.kill()
        cluster.wait()
        assert cluster.process.stdout is not None
        cluster.process.stdout.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cluster_serves_survives_and_is_found_again(start: Any) -> None:
    """Pages from three nodes, the leader killed, nothing lost, a clean end, a second start."""
    cluster = start("--noreload", "--migrate", "--run", "seed --orders 3")
    cluster.wait_for(r"^node +pages +raft +data$")
    page, member = f"http://127.0.0.1:{cluster.port + 2}/", f"127.0.0.1:{cluster.port + 5}"
    cluster.wait_for(rf"^node3 +{page} +{member} +\.raftsqlite/node3$")
    cluster.wait_for(r"^cluster \| node\d is the leader \(term \d+\)")
    cluster.wait_for(r"^seed +\| 42 products and 3 orders added")
    pids = cluster.ready()
    assert cluster.get(1, "/api/events/", {"text": "before"})
    leader = next(node for node in pids if cluster.get(node, "/node.json")["role"] == "leader")

    since = len(cluster.lines)
    os.kill(pids[leader], signal.SIGKILL)
    other, event = leader % NODES + 1, {"text": "meanwhile"}
    until(lambda: cluster.get(other, "/api/events/", event), lambda: f"no write: {cluster.lines}")
    cluster.wait_for(rf"^cluster \| node{leader} \(pid {pids[leader]}\) was ended by SIGKILL; it is restarted")
    cluster.wait_for(r"^cluster \| node\d is the leader", since=since)
    for node in pids:
        until(lambda node=node: cluster.events(node) == ["before", "meanwhile"], lambda: repr(cluster.lines))

    pids = cluster.ready()
    assert cluster.end(signal.SIGINT) == 0
    assert not [pid for pid in pids.values() if alive(pid)]
    assert cluster.lines[-1] == "cluster | stopped"

    again = start("--noreload")
    pids = again.ready()
    for node in pids:
        until(lambda node=node: again.events(node) == ["before", "meanwhile"], lambda: repr(again.lines))
    # kill -9 of the parent leaves no orphan; wait() fails if one holds the output.
    again.end(signal.SIGKILL)
    until(lambda: not [pid for pid in pids.values() if alive(pid)], lambda: "an orphan is left")


def test_changed_code_rolls_through_the_nodes_with_the_leader_last(start: Any, tmp_path: Path) -> None:
    """One after the other, each with a process of its own; all serve the new code in the end."""
    cluster = start("--migrate")
    cluster.wait_for(r"^migrate \| .*shop\.0001_initial\.\.\. OK")
    before = cluster.ready()
    views = tmp_path / "project" / "shop" / "views.py"
    old, new = "described = describe_node()", "described = {**describe_node(), 'new': 1}"
    views.write_text(views.read_text().replace(old, new))
    cluster.wait_for(r"^cluster \| every node runs the new code")
    leader, order = None, []
    for line in cluster.lines:
        if match := re.match(r"cluster \| node(\d) is the leader", line):
            leader = match[1]
        elif match := re.match(r"cluster \| restarting node(\d)", line):
            order.append(match[1])
            assert match[1] != leader or len(order) == NODES, f"the leader was not the last: {cluster.lines}"
    assert sorted(order) == ["1", "2", "3"]
    after = cluster.ready()
    assert not set(before.values()) & set(after.values())
    assert [cluster.get(node, "/node.json")["new"] for node in after] == [1, 1, 1]
    assert cluster.end(signal.SIGTERM) == 0
