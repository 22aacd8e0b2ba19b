"""``manage.py runcluster`` on a copy of the test project, and what tests ask of it."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_range
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


class Cluster(Printing):
    """A runcluster process and its output."""

    def __init__(self, project: Path, ports: int, *arguments: str) -> None:
        self.port = ports
        command = [sys.executable, "manage.py", "runcluster", "--port", str(ports), "--raft-port", str(ports + NODES)]
        super().__init__(
            [*command, *arguments],
            folder=project,
            # What stands still for a moment, since the machine is busy, is not to lose the leadership.
            environment={
                "RAFTSQLITE_DEFAULT": '{"OPTIONS": {"election_timeout": 3}}',
                "TESTPROJECT_DATA": str(project / "data"),
            },
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
        except (OSError, http.client.HTTPException, ValueError):  # also one that was killed in the midst of it
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

    def leader(self) -> int:
        """The number of the node that leads by its own word; waits for one."""

        def found() -> int | None:
            told = {node: self.get(node, "/node.json") for node in range(1, NODES + 1)}
            return next((node for node, each in told.items() if each and each["role"] == "leader"), None)

        return int(until(found, lambda: "nobody leads:\n" + "\n".join(self.lines)))

    def raft_address(self, node: int) -> str:
        """The address of a node's member of the group."""
        return f"127.0.0.1:{self.port + NODES + node - 1}"

    def events(self, node: int) -> list[str] | None:
        answer = self.get(node, "/api/events/")
        # A set: a request that was given up may have been committed, and was then sent again as a new one.
        return None if answer is None else sorted(set(answer["events"]))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    project = tmp_path / "project"
    shutil.copytree(TESTPROJECT, project, ignore=shutil.ignore_patterns("data", ".raftsqlite", "__pycache__"))
    ports = free_range(2 * NODES)
    started: list[Cluster] = []

    def make(*arguments: str) -> Cluster:
        started.append(Cluster(project, ports, *arguments))
        return started[-1]

    yield make
    for cluster in started:
        cluster.close()
