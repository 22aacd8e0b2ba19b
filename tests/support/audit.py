"""One member alone with its messages: the bare library, and ours, driven by the same directed schedule.

``Bare`` is pysyncobj's SyncObj as it comes, on a transport that only keeps what is sent; ``Shell`` is a Replica on a
real log. Both take messages of pysyncobj's own shape; Shell adds the stamps that a correct peer of ours would add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pysyncobj.pickle
import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import MemoryJournal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.filter import ANSWERS, QUESTIONS
from django_raftsqlite.raft.replica import Replica
from tests.support.simulation import BreakableLog

Message = dict[str, Any]
Entry = tuple[bytes, int, int]


class Clock:
    """pysyncobj's clock, standing still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def standing_clock() -> Iterator[Clock]:
    """Put a Clock in the place of pysyncobj's."""
    clock, real = Clock(), library.monotonicTime
    library.monotonicTime = clock
    try:
        yield clock
    finally:
        library.monotonicTime = real


def append_entries(
    term: int, prev: tuple[int, int], entries: list[Entry] | None = None, *, commit: int = 1
) -> Message:
    """A leader's message; ``prev`` is (index, term)."""
    return {
        "type": "append_entries",
        "term": term,
        "commit_index": commit,
        "prevLogIdx": prev[0],
        "prevLogTerm": prev[1],
        "entries": entries or [],
        "quiet": False,
    }


def acknowledge(index: int) -> Message:
    """A follower's reply: it has all up to ``index``."""
    return {"type": "next_node_idx", "next_node_idx": index + 1, "reset": False, "success": True}


def reset(next_index: int) -> Message:
    """A follower's reply: go on from ``next_index``."""
    return {"type": "next_node_idx", "next_node_idx": next_index, "reset": True, "success": False}


class _Drawer(Transport):
    """A transport that keeps what is sent."""

    is_ready = True

    def __init__(self) -> None:
        super().__init__(None, None, None)
        self.sent: list[tuple[str, Message]] = []

    @property
    def ready(self) -> bool:
        return self.is_ready

    def send(self, node: Node, message: Message) -> bool:
        self.sent.append((node.id, message))
        return True

    def addNode(self, node: Node) -> None:
        pass

    def dropNode(self, node: Node) -> None:
        pass

    def destroy(self) -> None:
        pass


class Bare(SyncObj):
    """Unmodified pysyncobj, driven by hand."""

    def __init__(
        self,
        peers: str = "bc",
        *,
        address: str = "a",
        journal: MemoryJournal | None = None,
        drawer: _Drawer | None = None,
        pipe: bool = False,
        put: Callable[[object], object] | None = None,
        **conf: Any,
    ) -> None:
        self.values: list[object] = []
        self.drawer = drawer or _Drawer()
        self._put = put or self.values.append
        settings: dict[str, Any] = {"autoTick": False, "appendEntriesUseBatch": False, "leaderFallbackTimeout": 1e6}
        real_pipe, library.PIPE_NOTIFIER_ENABLED = library.PIPE_NOTIFIER_ENABLED, pipe
        real_journal, library.createJournal = (
            library.createJournal,
            lambda _: MemoryJournal() if journal is None else journal,
        )
        try:
            super().__init__(
                Node(address),
                [Node(peer) for peer in peers],
                SyncObjConf(**{**settings, **conf}),
                nodeClass=Node,
                transport=self.drawer,
            )
        finally:
            library.createJournal = real_journal
            library.PIPE_NOTIFIER_ENABLED = real_pipe
        for peer in peers:
            self.drawer._onNodeConnected(Node(peer))

    @replicated
    def put(self, value: object) -> object:
        return self._put(value)

    def command(self, value: object) -> bytes:
        """The command that :meth:`put` appends."""
        return b"\x00" + pysyncobj.pickle.dumps((self._methodToID["put_v0"], (value,)))

    @property
    def sent(self) -> list[tuple[str, Message]]:
        return self.drawer.sent

    def sent_of(self, kind: str) -> list[Message]:
        return [message for _, message in self.drawer.sent if message["type"] == kind]

    def receive(self, peer: str, message: Message) -> None:
        self.drawer._onMessageReceived(Node(peer), message)

    def tick(self) -> None:
        """A tick in which no queued command is sent through the pipe, which is off."""
        real, library.PIPE_NOTIFIER_ENABLED = library.PIPE_NOTIFIER_ENABLED, False
        try:
            self.doTick(0)
        finally:
            library.PIPE_NOTIFIER_ENABLED = real

    def ask(self, value: object, callback: Callable[[object, int], None] | None = None) -> None:
        """Call :meth:`put` as an application does."""
        real, library.PIPE_NOTIFIER_ENABLED = library.PIPE_NOTIFIER_ENABLED, False
        try:
            self.put(value, callback=callback)
        finally:
            library.PIPE_NOTIFIER_ENABLED = real

    def elect(self, clock: Clock) -> None:
        """Become the leader with the votes of all."""
        clock.now += 10
        self.tick()
        for node in sorted(self.otherNodes, key=str):
            self.receive(node.id, {"type": "response_vote", "term": self.raftCurrentTerm})
        assert self._isLeader()

    @property
    def is_leader(self) -> bool:
        return bool(self._isLeader())

    @property
    def term(self) -> int:
        return int(self.raftCurrentTerm)

    @property
    def commit_index(self) -> int:
        return int(self.raftCommitIndex)

    @property
    def entries(self) -> list[Entry]:
        return list(self._SyncObj__raftLog[:])

    def next_index(self, peer: str) -> int:
        return int(self._SyncObj__raftNextIndex[Node(peer)])


def member_id(peer: str) -> bytes:
    """The id of the log of a scripted peer."""
    return peer.encode() * 16


class Shell:
    """Our member, driven by hand."""

    def __init__(
        self,
        folder: Path,
        peers: str = "bc",
        *,
        address: str = "a",
        applied: int = 0,
        on_commit: Callable[[int, int, bytes], None] | None = None,
        connected: bool = True,
        room: Callable[[], bool] | None = None,
    ) -> None:
        self.handed: list[tuple[int, int, bytes]] = []
        self.sent: list[tuple[str, Message]] = []
        self.peers = peers
        self.log = BreakableLog(folder / f"log-{address}", durable=False)
        self.config = RaftConfig(address, tuple(address + peers), self.log.path, durable=False)
        self.replica = Replica(
            self.config,
            self.log,
            send=self._send,
            on_commit=on_commit or (lambda *entry: self.handed.append(entry)),
            applied=applied,
            room=room,
        )
        self._seq = 0
        if connected:
            for peer in peers:
                self.replica.connected(peer, member_id(peer))

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def _send(self, peer: str, message: Message) -> bool:
        self.sent.append((peer, message))
        return True

    def sent_of(self, kind: str) -> list[Message]:
        return [message for _, message in self.sent if message["type"] == kind]

    def hand(self, peer: str, message: Message) -> None:
        """A message arrives, and the driver did not flush yet."""
        message = dict(message)
        if message["type"] in QUESTIONS:
            self._seq += 1
            message.setdefault("seq", self._seq)
        if message["type"] in ANSWERS:
            message.setdefault("re", self.replica.seq)
            message.setdefault("term", self.replica.term)
        if message["type"] == "request_vote":
            message.setdefault("transfer", False)
        self.replica.receive(peer, message)

    def receive(self, peer: str, message: Message) -> None:
        self.hand(peer, message)
        self.replica.flush()

    def tick(self) -> None:
        self.replica.tick()

    def wake(self, clock: Clock) -> None:
        """Let the election timeout pass, in ticks that are not late."""
        for _ in range(40):
            clock.now += self.config.heartbeat / 2
            self.tick()

    def campaign(self, clock: Clock) -> None:
        """Hold an election: PreVote is won."""
        term = self.term
        self.wake(clock)
        for peer in self.peers:
            self.receive(peer, {"type": "pre_vote_reply", "term": term + 1})
        assert self.term == term + 1

    def elect(self, clock: Clock) -> None:
        """Become the leader with the votes of all."""
        self.campaign(clock)
        for peer in self.peers:
            self.receive(peer, {"type": "response_vote"})
        assert self.is_leader

    @property
    def is_leader(self) -> bool:
        return self.replica.is_leader

    @property
    def term(self) -> int:
        return self.replica.term

    @property
    def commit_index(self) -> int:
        return self.replica.commit_index

    @property
    def entries(self) -> list[Entry]:
        return list(self.log[:])

    def next_index(self, peer: str) -> int:
        consensus = self.replica._raft
        return int(consensus._SyncObj__raftNextIndex[consensus._nodes[peer]])
