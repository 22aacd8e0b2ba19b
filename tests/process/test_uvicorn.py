"""uvicorn: the asynchronous ORM in one process and in several, killed and stopped under load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import ClusterNode, wait_until
from .conftest import NewCluster
from .servers import TIMEOUT, Clients, Kill, Server, kill, prepare

WORKERS = 3
CLIENTS = 6

Serve = Callable[..., Server]


@pytest.fixture
def node(new_cluster: NewCluster) -> ClusterNode:
    """A group of one, not yet running."""
    return new_cluster(1, timeout=TIMEOUT)[0]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts uvicorn on a node; it ends with the test, and its log is shown when that fails."""
    made: list[Server] = []

    def start(node: ClusterNode, *options: str) -> Server:
        command = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log", *options]
        made.append(Server(node, [*command, "project.asgi:application"]))
        return made[-1]

    yield start
    for server in made:
        server.destroy()
        print(server.tail())


def accounts_for(node: ClusterNode, clients: int) -> list[tuple[int, int]]:
    """See prepare(); nobody hosts the node then."""
    node.start()
    pairs = prepare(node, clients)
    node.stop()
    return pairs


def host_of(node: ClusterNode) -> int | None:
    status = node.status()
    return None if status is None else int(status["host"]["pid"])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize("age", [0, None])
def test_a_server_that_is_stopped_under_load_loses_nothing_that_it_answered(
    node: ClusterNode, serve: Serve, age: int | None
) -> None:
    """Whatever CONN_MAX_AGE is: each request has a thread and so a connection of its own, and they do not pile up."""
    node.settings["CONN_MAX_AGE"] = age
    pairs = accounts_for(node, CLIENTS)
    server = serve(node)
    clients = Clients(server, pairs, api="/async/")
    try:
        wait_until("requests are answered", lambda: clients.done() > 50)
        assert host_of(node) == server.pid
        files = open_files(server.pid)
        wait_until("requests are answered", lambda: clients.done() > 200)
        # 150 connections that stayed open would have two each at least; some wait for Python's garbage collector.
        more = open_files(server.pid)
        assert more < files + 200
        stopped = time.monotonic()
        status = server.stop()
        took = time.monotonic() - stopped
    finally:
        clients.stop()
    print(f"exit status {status} after {took:.2f} s, {clients.done()} requests answered, {files} and {more} files")
    assert "Traceback" not in server.log.read_text()
    assert host_of(node) is None
    clients.check(node.start(), stopped=stopped)


@pytest.mark.timeout(300)
def test_the_worker_that_hosts_the_node_may_be_killed_and_the_server_stopped_under_load(
    node: ClusterNode, serve: Serve, soak_seconds: float
) -> None:
    """No request fails but those whose worker died; nothing is lost or doubled."""
    node.settings["CONN_MAX_AGE"] = 60
    pairs = accounts_for(node, CLIENTS)
    server = serve(node, "--workers", str(WORKERS))
    clients = Clients(server, pairs, api="/async/")
    kills: list[Kill] = []
    try:
        for _ in range(20 if soak_seconds >= 60 else 3):
            before = clients.done()
            wait_until("requests are answered", lambda before=before: clients.done() > before + 20)
            host = wait_until("a worker hosts the node", lambda: host_of(node))
            assert host in server.children()
            kills.append(kill(host))
            wait_until("another worker hosts the node", lambda host=host: host_of(node) not in (None, host))
        before = clients.done()
        wait_until("requests are answered", lambda: clients.done() > before + 20)
        broken = clients.broken
        stopped = time.monotonic()
        status = server.stop()
        took = time.monotonic() - stopped
    finally:
        clients.stop()
    print(f"{len(kills)} kills of the host, {clients.done()} requests answered, {broken} broken by the kills")
    print(f"exit status {status} after {took:.2f} s")
    assert host_of(node) is None
    clients.check(node.start(), kills, stopped=stopped)
