"""Real nodes of one group in this process, on loopback ports, for tests that need threads and sockets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.host import HostedNode
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.sqlite.entry import Result, Statement

from .ports import free_ports

DEADLINE = 20.0


def eventually(check: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """What ``check`` returns once it is true; fails with ``what`` when the deadline (seconds) passes first."""
    end = time.monotonic() + deadline
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(0.01)


def statement(sql: str, *parameters: Any) -> Statement:
    """A statement of now."""
    return Statement(sql, parameters, time.time_ns() // 1_000_000, time.time_ns() & (2**63 - 1))


class Group:
    """``count`` nodes of one group below ``folder``; addresses are kept over restarts."""

    def __init__(self, folder: Path, count: int, **settings: Any) -> None:
        self.peers = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
        self.configs = [
            NodeConfig(
                name=folder / f"n{number}.sqlite3", address=address, peers=self.peers, secret="s" * 16, **settings
            )
            for number, address in enumerate(self.peers)
        ]
        self.nodes: list[ProcessNode] = [ProcessNode(config) for config in self.configs]

    def start(self) -> None:
        for node in self.nodes:
            node.backend()

    def restart(self, number: int) -> ProcessNode:
        """Start a node that was closed."""
        self.nodes[number] = ProcessNode(self.configs[number])
        self.nodes[number].backend()
        return self.nodes[number]

    def host(self, number: int) -> HostedNode:
        backend = self.nodes[number].backend()
        assert isinstance(backend, HostedNode)
        return backend

    def open_nodes(self) -> list[ProcessNode]:
        return [node for node in self.nodes if not node.closed]

    def leader(self) -> int:
        """The number of the node that leads, when all open nodes agree."""

        def agreed() -> list[int]:
            leaders = {node.status()["leader"] for node in self.open_nodes()}
            found = [self.peers.index(leader) for leader in leaders if leader is not None]
            return found if len(leaders) == len(found) == 1 and not self.nodes[found[0]].closed else []

        number: int = eventually(agreed, "the nodes agree on a leader")[0]
        return number

    def follower(self) -> int:
        """The number of an open node that does not lead."""
        leader = self.leader()
        return next(n for n, node in enumerate(self.nodes) if n != leader and not node.closed)

    def settle(self) -> dict[str, Any]:
        """Wait until all open nodes have applied the same and agree on it; that state."""

        def same() -> list[dict[str, Any]]:
            told = [node.status() for node in self.open_nodes()]
            top = max(status["commit_index"] for status in told)
            keys = {(s["applied_index"], s["version"], s["digest"]) for s in told}
            return told if len(keys) == 1 and told[0]["applied_index"] == top else []

        status: dict[str, Any] = eventually(same, "all nodes have the same version and digest")[0]
        return status

    def quiet(self) -> dict[str, Any]:
        """Wait until the leader has nothing more to write of its own: it has heard of all members. Then settle."""

        def known() -> bool:
            leader = self.host(self.leader())
            everybody = all(member.id for member in leader._driver.view.members)
            return everybody and leader._protocol.used == leader.config.protocols[1]

        eventually(known, "all members are known, and the newest protocol is in use")
        return self.settle()

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@contextlib.contextmanager
def group(folder: Path, count: int, **settings: Any) -> Iterator[Group]:
    """A started group that is closed at the end."""
    made = Group(folder, count, **settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


def write(node: Any, sql: str, *parameters: Any, timeout: float = 10.0) -> Result:
    """An autocommit write on a node."""
    result: Result = node.submit(statement(sql, *parameters), {}, solo=False, timeout=timeout)
    return result


def read(node: ProcessNode, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """A local read on a node."""
    reader = node.readers.acquire()
    try:
        return list(reader.execute(sql, parameters))
    finally:
        node.readers.release(reader)
