"""Running nodes that are told what no member and no process of theirs would say: they serve on, and are the same."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest

from django_raftsqlite.node import socketpath, wire
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.registry import attach_node
from django_raftsqlite.raft.session import Session
from django_raftsqlite.raft.transport import Transport
from tests.fuzz.fuzzing import SECONDS, damaged
from tests.support.nodes import eventually, group, read, write


def test_a_group_serves_on_while_its_members_say_what_no_member_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is followed by damaged copies of it: of every kind that is under way while all nodes write.

    Whatever of it is refused would end a session; here the session goes on, so that more can be said.
    """
    number = random.SystemRandom().getrandbits(32)
    print(f"seed {number}")
    chance, mutex = random.Random(number), threading.Lock()
    refused: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    over = threading.Event()
    deliver = Transport.deliver

    def deliver_more(self: Transport, session: Session, message: dict[str, Any]) -> None:
        deliver(self, session, message)
        if over.is_set():
            return
        with mutex:
            if message.get("type") == "node.progress":
                # What it says of itself in the right types is believed, so only other types are sure to be refused.
                name = chance.choice(["applied", "version", "digest", "state", "log_bytes", "wants", "speaks"])
                copies: list[Any] = [{**message, name: {"x": 1}}, {**message, name: [[]]}, {**message, name: True}]
            else:
                copies = [damaged(chance, message) for _ in range(chance.randrange(3))]
        for copy in copies:
            if not isinstance(copy, dict):
                continue
            kind = str(message.get("type"))
            try:
                deliver(self, session, copy)
            except Exception:
                refused[kind] += 1
            else:
                taken[kind] += 1

    def enough() -> bool:
        return sum(list(refused.values())) > 20 and refused["node.progress"] > 0

    written = []
    with group(tmp_path, 3) as trio:
        trio.leader()
        write(trio.nodes[0], "CREATE TABLE t (x INTEGER PRIMARY KEY)")
        monkeypatch.setattr(Transport, "deliver", deliver_more)
        began = time.monotonic()
        while (passed := time.monotonic() - began) < SECONDS + 2 or not enough():
            assert passed < SECONDS + 60, f"too little was refused: {refused}"
            node = trio.nodes[len(written) % 3]
            write(node, "INSERT INTO t VALUES (?)", len(written), timeout=20.0)
            written.append(len(written))
            node.read_barrier(timeout=20.0)
            node.status()
        over.set()
        monkeypatch.undo()
        write(trio.nodes[0], "INSERT INTO t VALUES (?)", len(written), timeout=20.0)
        written.append(len(written))
        trio.settle()
        for node in trio.nodes:
            assert [row[0] for row in read(node, "SELECT x FROM t ORDER BY x")] == written
            status = node.status()
            assert status["role"] != "failed", status["reason"]
    print(f"{len(written)} writes; refused {sum(refused.values())}, taken {sum(taken.values())}: {dict(taken)}")
    assert not taken["node.progress"]


@pytest.fixture
def node(tmp_path: Path) -> Any:
    made = ProcessNode(NodeConfig(name=tmp_path / "one.sqlite3", address="localhost", peers=("localhost",)))
    write(made, "CREATE TABLE t (x)")
    yield made
    made.close()


def hello(config: NodeConfig) -> socket.socket:
    from django_raftsqlite import __version__

    sock = socketpath.connect(config.folder, 5.0)
    wire.send(sock, ["hello", wire.PROTOCOL, __version__, 0])
    assert wire.receive(sock, time.monotonic() + 10)[0] == "ok"
    return sock


VERBS: dict[str, list[Any]] = {
    "ping": [],
    "open_origin": [b"o" * 16, 0.3],
    "close_origin": [b"p" * 16],
    "execute": [b"o" * 16 + b"\0" * 7 + b"\1", 1, b"payload", False, None, 0, 0.3],
    "begin": [{}, "a reason", 0.3, False],
    "run": [[["SELECT 1", None, 1, 2, None]]],
    "seal": [],
    "resume": [],
    "commit": [b"o" * 16 + b"\0" * 7 + b"\2", 1, b"payload", False, None, 0, 0.3],
    "rollback": [],
    "barrier": [0.3],
    "staleness": [0.3, 0.3],
    "reach": [b"l" * 16, 1, 0.1],
    "status": [],
    "figures": [],
    "note": [{}],
    "members": ["add", "127.0.0.1:1", False, 0.1],
    "verify": [0.3],
    "snapshot": [0.3],
}


def test_a_host_serves_on_whatever_an_attached_process_says(
    node: ProcessNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Damaged requests of every verb, and bytes that are none, before and after the hello."""
    number = random.SystemRandom().getrandbits(32)
    print(f"seed {number}")
    chance = random.Random(number)
    said: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or len(said) < len(VERBS) + 2:
        kind = chance.choice(["raw", "before", *VERBS, *VERBS])
        said[kind] += 1
        if kind == "raw":
            with socketpath.connect(node.config.folder, 5.0) as sock:
                sock.sendall(chance.randbytes(chance.randrange(1, 40)))
            continue
        if kind == "before":
            with socketpath.connect(node.config.folder, 5.0) as sock:
                tell(sock, damaged(chance, ["hello", wire.PROTOCOL, "0.1", 0]))
            continue
        with hello(node.config) as sock:
            sock.settimeout(10.0)
            for _ in range(3):
                verb = chance.choice(list(VERBS)) if chance.random() < 0.2 else kind
                request = [verb, *VERBS[verb]]
                if chance.random() < 0.8:
                    request = damaged(chance, request)
                tell(sock, request)
                try:
                    wire.receive(sock, time.monotonic() + 10)
                except wire.Closed:
                    break
    caplog.clear()
    guest = attach_node(node.config)
    assert guest is not None
    try:
        assert guest.status()["role"] == "leader", guest.status()["reason"]
    finally:
        guest.close()
    write(node, "INSERT INTO t VALUES (1)")
    assert read(node, "SELECT count(*) FROM t") == [(1,)]
    eventually(lambda: not serving(), "the threads of all connections have ended")
    print(f"{sum(said.values())} connections")


def serving() -> list[threading.Thread]:
    """The threads of attached connections."""
    return [thread for thread in threading.enumerate() if "(_serve)" in thread.name]


def tell(sock: socket.socket, message: Any) -> None:
    body = msgpack.packb(message, unicode_errors="surrogatepass")
    sock.sendall(struct.pack(">I", len(body)) + body)


def test_a_stranger_to_the_protocol_makes_the_host_keep_no_memory(node: ProcessNode) -> None:
    """Before the hello, a length beyond that of any hello ends the connection, before the rest of it has come."""
    for length in (2**32 - 1, 2**30, 2**20):
        with socketpath.connect(node.config.folder, 5.0) as sock:
            sock.settimeout(10.0)
            sock.sendall(struct.pack(">I", length) + b"x")
            with contextlib.suppress(ConnectionResetError):  # what was sent and not read
                assert sock.recv(1) == b""
