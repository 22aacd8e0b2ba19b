"""What one member sends: numbered, stamped, and held back while it promises what is not on the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .filter import ANSWERS, PROMISES, QUESTIONS, Filter, Message, State
from .log import RaftLog
from .peers import Peers


class Outbox:
    """The one way out for messages of Raft's.

    Nothing that promises durability leaves before the log is synced: replies, votes and requests for votes are held
    until the next :meth:`settle` (audit R10), and dropped with their session. Entries of a leader leave at once, so
    that all disks write at the same time. Questions are numbered by ``seq``, and asked of recognised peers alone.

    While a question is handled, ``answering`` is its number, and ``quiet`` says that it wants no answer unless the
    logs differ. ``transfer_term`` is the term of the election that the leader has asked this member to hold.
    """

    def __init__(
        self,
        log: RaftLog,
        peers: Peers,
        rules: Filter,
        state: State,
        transmit: Callable[[str, dict[str, Any]], bool],
    ) -> None:
        self._log = log
        self._peers = peers
        self._filter = rules
        self._state = state
        self._transmit = transmit
        self._held: list[tuple[str, int, Message]] = []
        self.seq = 0
        self.answering: int | None = None
        self.quiet = False
        self.transfer_term: int | None = None

    def send(self, peer: str, message: Message) -> bool:
        """Stamp a message and send it, or hold it if it promises what is not on the disk; whether a session took
        it."""
        kind = message["type"]
        if self.quiet and kind == "next_node_idx" and message["success"]:
            return True  # It would tell the leader what it knows.
        if kind in ("append_entries", "next_node_idx", "request_vote", "response_vote", "timeout_now"):
            transfer = self.transfer_term == message.get("term")
            message = self._filter.outgoing(message, self._state, transfer=transfer)
        if kind in QUESTIONS:
            if peer not in self._peers.recognised:
                return False
            self.seq += 1
            message["seq"] = self.seq
        elif kind in ANSWERS:
            assert self.answering is not None, "an answer is sent while its question is handled"
            message["re"] = self.answering
        session = self._peers.sessions.get(peer)
        if session is None:
            return False
        if kind in PROMISES and (self._log.dirty or self._held):
            self._held.append((peer, session, message))
            return True
        return self._transmit(peer, message)

    def settle(self) -> None:
        """One fsync, then the messages that promise what it made durable."""
        if self._log.dirty:
            self._log.sync()
        if self._held:
            held, self._held = self._held, []
            sessions = self._peers.sessions
            for peer, session, message in held:
                if sessions.get(peer) == session:
                    self._transmit(peer, message)

    def disconnected(self, peer: str) -> None:
        """What a peer was to be sent goes with its session."""
        self._held = [item for item in self._held if item[0] != peer]

    def clear(self) -> None:
        """Nothing that was held is sent any more."""
        self._held.clear()
