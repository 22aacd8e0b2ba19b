"""The receiving side of a snapshot: asks for the pieces, checks the whole, and has the node's file replaced."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..raft.config import RaftView
from ..sqlite.copying import Layout, NoSpace, need_space
from .messages import Message
from .snapshot_source import LARGEST_PART, PART, digest_of
from .worker import Stopped, Worker

logger = logging.getLogger("django_raftsqlite.node")

MOST_UNDER_WAY = 2 * 1024 * 1024
"""Bytes that are asked for and not written yet, at most; and when a session begins:"""
FIRST_UNDER_WAY = 4 * PART
QUEUEING = 0.1
"""Seconds that a piece may take longer than the fastest one: more, and less is asked for at a time."""
STALL = 2.0
GIVE_UP = 10.0
"""Seconds without a piece after which another copy is taken, if there is one; what is here is kept."""
SYNC_BYTES = 4 * 1024 * 1024
"""Written between two fsyncs, so that the log's own never wait for much."""


@dataclass(slots=True)
class Transfer:
    """One copy on its way. ``written`` is up to where it is in the file, ``asked`` up to where it was asked for.

    ``phase``: "opening", "receiving", "checking" or "installing".
    """

    id: bytes
    index: int
    term: int
    size: int
    source: str
    members: bytes
    path: Path
    heard: float
    phase: str = "opening"
    descriptor: int = -1
    received: int = 0
    written: int = 0
    asked: int = 0
    synced: int = 0
    window: int = FIRST_UNDER_WAY
    quickest: float = float("inf")
    questions: deque[tuple[int, float]] = field(default_factory=deque)
    linked: bool = True


class SnapshotTarget:
    """Takes one copy at a time, from the member that offered it, also over several sessions and over restarts.

    What has arrived stays in a file named by the copy's SHA-256: it goes on from there. No more than a window of
    bytes is asked for and not written yet; the window follows how long pieces queue on their way, so that other
    messages do not (what LEDBAT, RFC 6817, does).

    A copy is of use beyond the index ``applied()``. ``layout`` is that of the state machine's file, which a copy
    must have unless ``any_layout()``; ``mismatched`` is told when it has not.
    ``install(path, index, term, members, done)`` replaces the file's content and calls ``done`` with None, or with
    why not (Stopped: it is not needed any more).
    Loop thread; what takes long is done by ``worker``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mode: int,
        layout: Layout,
        worker: Worker,
        send: Callable[[str, Message], bool],
        applied: Callable[[], int],
        install: Callable[[Path, int, int, bytes, Callable[[Exception | None], None]], None],
        any_layout: Callable[[], bool] = lambda: False,
        mismatched: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._mode = mode
        self.layout = layout
        self._any_layout = any_layout
        self._mismatched = mismatched
        self._worker = worker
        self._send = send
        self._applied = applied
        self._install = install
        self._clock = clock
        self._transfer: Transfer | None = None
        self.problem: str | None = None
        self.received_bytes = 0

    def status(self) -> dict[str, Any] | None:
        """What is being received, for the node's status and for the other members."""
        transfer = self._transfer
        if transfer is None:
            return None
        return {
            "from": transfer.source,
            "index": transfer.index,
            "bytes": transfer.written,
            "size": transfer.size,
            "phase": transfer.phase,
        }

    def close(self) -> None:
        """Close the file, which stays; after the worker has ended."""
        if self._transfer is not None and self._transfer.descriptor >= 0:
            os.close(self._transfer.descriptor)
            self._transfer.descriptor = -1

    # What happens -----------------------------------------------------------------------------------------

    def on_offer(self, peer: str, message: Message, view: RaftView) -> None:
        """The leader has a copy, and finds that this member needs one."""
        index, transfer = int(message["index"]), self._transfer
        members = bytes(message["members"])
        if peer != view.leader or index <= self._applied() or not members:
            return
        if transfer is not None:
            if transfer.id == message["id"]:
                transfer.source = peer
                return
            if transfer.phase != "receiving" or self._clock() - transfer.heard < STALL:
                return
            self._end(transfer, keep=False)
        layout = Layout(int(message["page_size"]), str(message["encoding"]))
        if layout != self.layout and not self._any_layout():
            self._tell(
                f"{peer} sends a copy with pages of {layout.page_size} bytes in {layout.encoding}, and this node's "
                f"file has pages of {self.layout.page_size} bytes in {self.layout.encoding}: it cannot be taken"
            )
            self._mismatched(str(self.problem))
            return
        id_, size = bytes(message["id"]), int(message["size"])
        path = self._folder / f"snapshot-{id_.hex()[:32]}.part"
        self._transfer = transfer = Transfer(
            id_, index, int(message["term"]), size, peer, members, path, self._clock()
        )
        self._open(transfer)

    def on_part(self, peer: str, message: Message) -> None:
        """A piece arrives."""
        transfer = self._transfer
        if transfer is None or transfer.phase != "receiving" or message["id"] != transfer.id:
            return
        offset, data = message["offset"], bytes(message["data"])
        if peer != transfer.source or offset != transfer.received or not data:
            return  # asked for in an earlier session, or twice
        if offset + len(data) > transfer.size:
            raise ValueError("a piece beyond the end")
        transfer.heard = self._clock()
        transfer.received += len(data)
        self.received_bytes += len(data)
        self._measure(transfer, offset)
        self._write(transfer, offset, data)

    def on_gone(self, peer: str, message: Message) -> None:
        """The source does not have the copy any more."""
        transfer = self._transfer
        if transfer is None or transfer.phase != "receiving":
            return
        if (peer, message["id"]) == (transfer.source, transfer.id):
            self._end(transfer, keep=False)

    def tick(self, view: RaftView) -> None:
        """Time passes: what was asked for may be lost with its session."""
        transfer = self._transfer
        if transfer is None or transfer.phase != "receiving":
            return
        now = self._clock()
        if transfer.source not in view.connected:
            transfer.linked = False
        elif not transfer.linked or now - transfer.heard > STALL:
            transfer.linked = True
            self._ask_again(transfer)
        if transfer.index <= self._applied():
            self._end(transfer, keep=False)  # it got on by the log
        elif now - transfer.heard > GIVE_UP:
            self._end(transfer, keep=True)

    # Inside -----------------------------------------------------------------------------------------------

    def _open(self, transfer: Transfer) -> None:
        def begin() -> tuple[int, int]:
            for other in self._folder.glob("snapshot-*.part"):
                if other != transfer.path:
                    other.unlink(missing_ok=True)
            descriptor = os.open(transfer.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, self._mode)
            try:
                os.fchmod(descriptor, self._mode)
                there = min(os.fstat(descriptor).st_size, transfer.size) // PART * PART
                os.ftruncate(descriptor, there)
                need_space(self._folder, transfer.size - there)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor, there

        def begun(result: tuple[int, int] | Exception) -> None:
            if isinstance(result, Exception):
                self._fault(transfer, result)
                return
            transfer.descriptor, there = result
            transfer.received = transfer.written = transfer.asked = transfer.synced = there
            transfer.phase, transfer.heard, self.problem = "receiving", self._clock(), None
            logger.info(
                "taking a copy of the database at log index %d from %s (%.1f MiB, %.1f of them are here)",
                transfer.index,
                transfer.source,
                transfer.size / 2**20,
                there / 2**20,
                extra={
                    "raft_event": "snapshot_begun",
                    "raft_member": transfer.source,
                    "raft_index": transfer.index,
                },
            )
            self._ask(transfer)

        self._worker.run(begin, begun)

    def _ask(self, transfer: Transfer) -> None:
        if transfer.written >= transfer.size:
            self._check(transfer)
            return
        # Large pieces cost less, and small ones keep others waiting for less.
        piece = min(max(transfer.window // 8 // PART, 1) * PART, LARGEST_PART)
        while transfer.asked < transfer.size and transfer.asked - transfer.written + piece <= transfer.window:
            length = min(piece, transfer.size - transfer.asked)
            want = {"type": "node.snapshot_want", "id": transfer.id, "offset": transfer.asked, "length": length}
            if not self._send(transfer.source, want):
                return
            transfer.questions.append((transfer.asked, self._clock()))
            transfer.asked += length

    def _ask_again(self, transfer: Transfer) -> None:
        transfer.heard = self._clock()
        transfer.asked = transfer.received
        transfer.questions.clear()
        transfer.window = FIRST_UNDER_WAY
        self._ask(transfer)

    def _measure(self, transfer: Transfer, offset: int) -> None:
        while transfer.questions and transfer.questions[0][0] < offset:
            transfer.questions.popleft()
        if transfer.questions and transfer.questions[0][0] == offset:
            took = self._clock() - transfer.questions.popleft()[1]
            transfer.quickest = min(transfer.quickest, took)
            if took - transfer.quickest > QUEUEING:
                transfer.window = max(transfer.window // 2, PART)
            else:
                transfer.window = min(transfer.window + PART // 2, MOST_UNDER_WAY)

    def _write(self, transfer: Transfer, offset: int, data: bytes) -> None:
        descriptor = transfer.descriptor
        sync = offset + len(data) - transfer.synced >= SYNC_BYTES
        if sync:
            transfer.synced = offset + len(data)

        def write() -> None:
            if os.pwrite(descriptor, data, offset) != len(data):
                raise OSError(f"{transfer.path} was written in part")
            if sync:
                os.fdatasync(descriptor)

        def written(result: Exception | None) -> None:
            if self._transfer is not transfer:
                return
            if isinstance(result, Exception):
                self._fault(transfer, result)
                return
            transfer.written = offset + len(data)
            self._ask(transfer)

        self._worker.run(write, written)

    def _check(self, transfer: Transfer) -> None:
        transfer.phase = "checking"
        descriptor = transfer.descriptor

        def check() -> bytes:
            os.fsync(descriptor)
            return digest_of(descriptor, self._go_on)

        def checked(result: bytes | Exception) -> None:
            if isinstance(result, Exception):
                self._fault(transfer, result)
            elif result != transfer.id:
                self._tell(f"the copy that came from {transfer.source} is damaged, and is taken again")
                self._end(transfer, keep=False)
            else:
                transfer.phase = "installing"
                self._install(
                    transfer.path,
                    transfer.index,
                    transfer.term,
                    transfer.members,
                    lambda error: self._installed(transfer, error),
                )

        self._worker.run(check, checked)

    def _installed(self, transfer: Transfer, error: Exception | None) -> None:
        if error is None:
            logger.info(
                "this node goes on from a copy of the database at log index %d",
                transfer.index,
                extra={"raft_event": "snapshot_taken", "raft_member": transfer.source, "raft_index": transfer.index},
            )
            self.problem = None
        elif not isinstance(error, Stopped):
            self._tell(f"the copy of the database could not be taken over: {error}")
        # Who does not have enough space for it now may have later; all else is begun anew.
        self._end(transfer, keep=isinstance(error, NoSpace))

    def _go_on(self) -> None:
        if self._worker.stopping:
            raise Stopped

    def _fault(self, transfer: Transfer, error: Exception) -> None:
        if not isinstance(error, Stopped):
            self._tell(f"a copy of the database cannot be received: {error}")
        self._end(transfer, keep=isinstance(error, NoSpace))

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            logger.error("%s", problem)

    def _end(self, transfer: Transfer, *, keep: bool) -> None:
        self._transfer = None
        descriptor, transfer.descriptor = transfer.descriptor, -1

        def end() -> None:
            if descriptor >= 0:
                os.close(descriptor)
            if not keep:
                with suppress(OSError):
                    transfer.path.unlink(missing_ok=True)

        self._worker.run(end, lambda _: None)
