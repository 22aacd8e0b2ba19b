"""Whether all members hold the same content at one log index, row by row."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import apsw

from ..raft.config import RaftView
from ..sqlite.connections import Connection
from ..sqlite.content import Content, close, hash_content
from .divergence import majority
from .messages import Message
from .worker import Stopped, Worker

logger = logging.getLogger("django_raftsqlite.node")

PREFIX = "node.verified_"
"""What the types of its messages begin with."""
NICENESS = 10


class Verification:
    """Hashes the content as it was when the log said so, beside all else, and, as the leader, compares.

    The log orders it, so that all members look at the same state: :meth:`begin` is called on the apply thread
    between two entries and only pins a snapshot; the rest is done by a thread of its own, of low priority. What
    comes out is told to the others with what else a member says of itself (:attr:`latest`). Where more than half of
    all members have the same content, those that differ are told so: ``accused(reason, index)``.

    The digest that runs over all changes finds what was decided differently; this finds what changed by itself, such
    as a damaged page that no write has touched since.
    """

    def __init__(
        self,
        address: str,
        *,
        name: str,
        call: Callable[..., object],
        send: Callable[[str, Message], object],
        pin: Callable[[], Connection],
        accused: Callable[[str, int], object],
    ) -> None:
        self._address = address
        self._send = send
        self._pin = pin
        self._accused = accused
        self._worker = Worker(f"raftsqlite-verify {name}", call)
        self._started = False
        self._pinned: set[Connection] = set()
        self._newest = b""
        self._told: tuple[bytes, frozenset[str]] | None = None
        self.latest: dict[str, Any] | None = None

    def begin(self, verification: bytes, index: int) -> None:
        """The entry ``index`` orders a verification (16 bytes name it). Apply thread."""
        if verification == self._newest:
            return  # it was sent twice
        self._newest = verification
        self.latest = {"id": verification, "index": index, "digest": None, "problem": None}
        try:
            connection = self._pin()
        except apsw.Error as error:
            self.latest = {**self.latest, "problem": f"the content could not be read: {error}"}
            return
        if not self._started:
            self._started = True
            self._worker.start()
        self._pinned.add(connection)
        began = time.monotonic()

        def job() -> Content:
            try:
                with suppress(OSError, AttributeError):  # Linux: of this thread alone
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
                return hash_content(connection, lambda: self._go_on(verification))
            finally:
                self._pinned.discard(connection)
                close(connection)

        def done(found: Content | Exception) -> None:
            if verification != self._newest or isinstance(found, Stopped):
                return
            told = {"id": verification, "index": index, "seconds": round(time.monotonic() - began, 3)}
            if isinstance(found, Exception):
                logger.error("the content could not be verified: %s", found)
                self.latest = {**told, "digest": None, "problem": str(found)}
            else:
                self.latest = {**told, "digest": found.digest, "bytes": found.size, "problem": found.problem}

        self._worker.run(job, done)

    def tick(self, view: RaftView, heard: Mapping[str, Message]) -> None:
        """As the leader, look who differs. Loop thread."""
        mine = self.latest
        if view.role != "leader" or mine is None:
            return
        everybody = {self._address: mine} | {
            peer: told["verified"]
            for peer, told in heard.items()
            if told.get("verified") is not None and told.get("suspect") is None
        }
        votes = {
            member: bytes(told["digest"])
            for member, told in everybody.items()
            if told["id"] == mine["id"] and told["digest"] is not None
        }
        right = majority(votes, view.members.voters)
        wrong = frozenset(member for member, digest in votes.items() if digest != right)
        if right is None or self._told == (mine["id"], wrong):
            return
        self._told = mine["id"], wrong
        agreeing = " and ".join(sorted(votes.keys() - wrong))
        for member in sorted(wrong):
            reason = f"its content at log entry {mine['index']}, row by row, differs from that of {agreeing}"
            problem = everybody[member].get("problem")
            if problem:
                reason += f" ({problem})"
            if member == self._address:
                self._accused(reason, mine["index"])
            else:
                logger.error("%s is told that it is suspect: %s", member, reason)
                self._send(member, {"type": f"{PREFIX}wrong", "id": mine["id"], "digest": right, "reason": reason})

    def on_message(self, peer: str, message: Message, view: RaftView) -> None:
        """The leader found that this node differs. Raises KeyError, TypeError or ValueError for a malformed one."""
        mine = self.latest
        if peer != view.leader or mine is None or mine["id"] != message["id"]:
            return
        if mine["digest"] is not None and mine["digest"] != message["digest"]:
            self._accused(str(message["reason"]), mine["index"])

    def forget(self) -> None:
        """The file holds another state now."""
        self._newest, self.latest = b"", None

    def close(self) -> None:
        """End the thread."""
        self._worker.close()
        for connection in self._pinned:  # whose turn did not come
            close(connection)

    def _go_on(self, verification: bytes) -> None:
        if self._worker.stopping or verification != self._newest:
            raise Stopped
