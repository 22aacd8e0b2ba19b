"""Whoever is not a member gets one log line and a closed connection, and the group goes on."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable

import msgpack
import pytest

from .chaos import Chaos
from .cluster import Cluster, ClusterNode, wait_until
from .conftest import NewCluster

PATIENCE = 20.0


def connect(node: ClusterNode) -> socket.socket:
    host, port = node.address.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def frame(message: object) -> bytes:
    body: bytes = msgpack.packb(message)
    return struct.pack(">I", len(body)) + body


def until_closed(sock: socket.socket) -> bytes:
    """All that comes until the other side closes; TimeoutError when it does not."""
    received = b""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data
    raise TimeoutError


def hello(cluster: Cluster, node: ClusterNode, **changes: object) -> dict[str, object]:
    """A hello as a member with a greater address would send it, but for ``changes``."""
    source = max(peer for peer in cluster.peers if peer != node.address)
    return {
        "magic": "django-raftsqlite",
        "protocols": [1, 2],
        "cluster": b"x" * 16,
        "from": source,
        "to": node.address,
        "nonce": os.urandom(32),
        "package": "0.1.0",
        "facts": {},
        **changes,
    }


def speak(data: bytes) -> Callable[[Cluster, ClusterNode, socket.socket], None]:
    def act(_cluster: Cluster, _node: ClusterNode, sock: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)

    return act


def another_group(cluster: Cluster, node: ClusterNode, sock: socket.socket) -> None:
    sock.sendall(frame(hello(cluster, node)))


def half_a_hello(cluster: Cluster, node: ClusterNode, sock: socket.socket) -> None:
    data = frame(hello(cluster, node))
    sock.sendall(data[: len(data) // 2])


def hello_without_magic(cluster: Cluster, node: ClusterNode, sock: socket.socket) -> None:
    sock.sendall(frame(hello(cluster, node, magic="something else")))


STRANGERS = {
    "plain text": speak(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "random bytes": speak(os.urandom(4096)),
    "an oversized frame": speak(struct.pack(">I", 2**31 - 1) + b"\0" * 65536),
    "a frame of no map": speak(frame([1, 2, 3])),
    "half a handshake": half_a_hello,
    "a peer of another cluster id": another_group,
    "another protocol": hello_without_magic,
    "silence": speak(b""),
}


def term_of(node: ClusterNode) -> int:
    return int(wait_until(f"{node} answers", node.status)["term"])


def visited(cluster: Cluster, target: ClusterNode) -> bool:
    """Whether the strangers came, were seen to the door, and the leader went on to lead meanwhile."""
    term = term_of(target)
    sockets = {}
    logged: dict[str, int] = {}
    try:
        for name, act in STRANGERS.items():
            sock = connect(target)
            port = sock.getsockname()[1]
            sockets[name] = sock
            act(cluster, target, sock)
            logged[name] = port
        for name, sock in sockets.items():
            try:
                answer = until_closed(sock)
            except TimeoutError:
                pytest.fail(f"{name}: the connection was left open")
            assert b"proof" not in answer, name
    finally:
        for sock in sockets.values():
            sock.close()
    for name, port in logged.items():
        marker = f":{port}"

        def lines(marker: str = marker) -> list[str]:
            return [line for line in target.log.read_text().splitlines() if marker in line]

        found = wait_until(f"a log line about {name}", lines, 5)
        assert len(found) == 1, f"{name}: {found}"
    return term_of(target) == term


@pytest.mark.timeout(180)
def test_a_stranger_is_cut_off_with_one_log_line_and_the_group_writes_on(
    new_cluster: NewCluster, rng: object
) -> None:
    """Nothing is believed, unpickled or allocated for a peer that has not proven itself, and it has a deadline."""
    import random

    assert isinstance(rng, random.Random)
    cluster = new_cluster()
    cluster.start()
    chaos = Chaos(cluster, rng, {"insert": (1, 1, 1)})
    chaos.start()
    # The member with the least address is dialled by all others: a hello from them is what it expects.
    target = min(cluster.nodes, key=lambda node: node.address)
    # On a machine that stands still there are elections of another cause; strangers would cause one each time.
    assert any(visited(cluster, target) for _ in range(3)), "strangers cause elections"
    chaos.stop()
    cluster.converge()
    record = chaos.record()
    assert not record.wrong, record.wrong
    assert not record.no, f"a write was refused because of a stranger: {record.reasons}"
    for node in cluster:
        record.check_rows("insert", node.call("texts"))


def test_a_node_with_a_wrong_secret_stays_outside_and_is_told_why(new_cluster: NewCluster) -> None:
    """The two others form the quorum and write; the log lines say what is wrong on both sides."""
    cluster = new_cluster()
    outsider = max(cluster.nodes, key=lambda node: node.address)
    outsider.settings["OPTIONS"]["secret"] = "another secret, long enough as well"
    members = [node for node in cluster if node is not outsider]
    for node in cluster:
        node.start()
    cluster.wait_leader()
    members[0].call("migrate", wait=60)
    members[0].call("create", text="without the outsider")
    wait_until("the outsider's log names the secret", lambda: "secret" in outsider.log.read_text(), PATIENCE)
    wait_until(
        "a member's log names the secret", lambda: any("secret" in n.log.read_text() for n in members), PATIENCE
    )
    status = wait_until("it answers", outsider.status)
    assert (status["version"], status["leader"]) == (0, None)
    assert outsider.call("sql", query="select name from sqlite_master where name = 'ledger_event'") == []
