"""``manage.py runcluster`` on a copy of the test project, and what tests ask of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.printing import Printing

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


class Cluster(Printing):
    """A runcluster process and its output."""

    def __init__(self, project: Path, ports: int, *arguments: str) -> None:
        self.port = ports
        command = [sys.executable, "manage.py", "runcluster", "--port", str(ports), "--raft-port", str(ports + NODES)]
        super().__init__(
            [*command, *arguments],
            folder=project,
            environment={"TESTPROJECT_DATA": str(project / "data")},
            deadline=DEADLINE,
            own_session=True,
        )

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
        cluster.close()
