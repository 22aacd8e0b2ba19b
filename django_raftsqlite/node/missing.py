"""What the archive lacks and the leader's own log no longer has: asked of members whose logs still have it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..raft.config import RaftView
from .messages import Message
from .segments import LogEntry

PREFIX = "node.archive_"
"""What the types of its messages begin with."""

PIECE = 512 * 1024
"""Bytes of entries in one answer, about; small enough not to be in the way of heartbeats."""
ANSWER = 2.0
"""Seconds after which an answer is not waited for any more, and another member is asked, if there is one."""
PATIENCE = 30.0
"""Seconds without a single entry after which they are given up; a member that was restarted is back by then."""


class LogPort(Protocol):
    """The Raft log, as :class:`~django_raftsqlite.raft.driver.RaftDriver` offers it. Loop thread."""

    @property
    def hears_a_quorum(self) -> bool: ...

    def entries(self, first: int, last: int, size: int) -> Sequence[LogEntry]: ...


class Missing:
    """Gets committed entries from other members, and gives them to who asks.

    A leader whose log begins with a copy that it took as a follower lacks what its predecessor had committed and had
    not archived yet; the members that made up the majority have it, and hold it. Only what is committed is given
    away, so it is the same from whomever it comes. Nobody is asked who does not say that he has it, as part of what
    he says of his archiver (:meth:`has`): so nobody who does not know these messages.

    ``told`` gives what each member in reach said of itself lately, and when ("heard", by ``clock``). Loop thread.
    """

    def __init__(
        self,
        log: LogPort,
        *,
        address: str,
        send: Callable[[str, Message], bool],
        told: Callable[[], Mapping[str, Message]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._address = address
        self._send = send
        self._told = told
        self._clock = clock
        self._wanted: tuple[int, int] | None = None
        self._since = 0.0
        self._asked: str | None = None
        self._waits_until = 0.0
        self._found: Sequence[LogEntry] = ()

    @staticmethod
    def has(view: RaftView) -> list[int]:
        """The first and the last entry of this node's log, for the others. Of the first it may have but the place."""
        return [view.first_index + 1, view.last_index]

    def drop(self) -> None:
        """Nothing is wanted any more."""
        self._wanted, self._asked, self._found, self._waits_until = None, None, (), 0.0

    def get(self, first: int, last: int, view: RaftView) -> Sequence[LogEntry] | None:
        """Entries from ``first`` up to ``last`` at most. Nothing while they may still come: ask again soon. None when
        nobody has them, or nobody gave them within PATIENCE."""
        now = self._clock()
        if self._wanted is None or self._wanted[0] != first:
            self.drop()
            self._since = now
        self._wanted = first, last
        if self._found or now < self._waits_until:
            return self._found
        told = self._told()
        holders = sorted(peer for peer, said in told.items() if _has(said, first))
        if now - self._since > PATIENCE or (not holders and self._all_heard(told, view)):
            return None
        if holders:
            # After who was asked last, so that one who does not answer is not in the way of another.
            peer = next((each for each in holders if each > (self._asked or "")), holders[0])
            if self._send(peer, {"type": f"{PREFIX}want", "first": first, "last": last}):
                self._waits_until = now + ANSWER
            self._asked = peer
        return ()

    def _all_heard(self, told: Mapping[str, Message], view: RaftView) -> bool:
        """What all others said is younger than the question: an older word may be of before they got the entries."""
        others = view.members.by_address.keys() - {self._address}
        return all(peer in told and told[peer]["heard"] > self._since for peer in others)

    def on_message(self, peer: str, message: Message, view: RaftView) -> None:
        """A message whose type begins with PREFIX. Raises KeyError, TypeError or ValueError for a malformed one."""
        match message["type"].removeprefix(PREFIX):
            case "want":
                first, last = int(message["first"]), min(int(message["last"]), view.commit_index)
                entries = self._log.entries(first, last, PIECE) if first > view.first_index else []
                self._send(peer, {"type": f"{PREFIX}part", "first": first, "entries": entries})
            case "part":
                self._on_part(peer, int(message["first"]), message["entries"])
            case kind:
                raise ValueError(f"no such message: {kind!r:.40}")

    def _on_part(self, peer: str, first: int, entries: Sequence[Sequence[object]]) -> None:
        if self._wanted is None or (peer, first) != (self._asked, self._wanted[0]) or self._found:
            return
        found: list[LogEntry] = []
        for expected, (index, term, payload) in enumerate(entries, first):
            if index != expected or not isinstance(term, int) or not isinstance(payload, bytes):
                raise ValueError("these are no entries that follow each other")
            found.append((expected, term, payload))
        if found and found[-1][0] > self._wanted[1]:
            raise ValueError("there are entries that nobody asked for")
        self._found = found  # nothing, where it has yet to learn that they are committed: it is asked again


def _has(said: Message, index: int) -> bool:
    archive = said.get("archive")
    has = archive.get("has") if isinstance(archive, dict) else None
    if (
        said.get("failed") is not None
        or not isinstance(has, list | tuple)
        or [type(each) for each in has] != [int] * 2
    ):
        return False
    return bool(has[0] <= index <= has[1])
