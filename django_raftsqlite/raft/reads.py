"""ReadIndex (Raft thesis section 6.4): proof that a leader still led after a read began. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Set

Done = Callable[[int | None], None]
"""Told the index up to which the state must be applied before the read, or None: leadership was lost."""


class ReadIndex:
    """The reads that wait for one leadership's confirmation.

    A round takes the commit index, asks all peers, and is confirmed when a quorum (this member included) answered a
    question sent after the round began, in this term or a lower one of theirs: then no later leader can have
    committed anything before the round began. Reads that come during a round wait for the next: it could have begun
    before something that they must see was committed.

    Receipt times prove nothing, since an answer may have been under way for long (audit R16); questions are numbered.

    ``quorum`` says whether the peers it is given, and this member, are a majority.

    Invariant: a round is in flight only while its reads wait. Callbacks may add reads.
    """

    def __init__(self, quorum: Callable[[Set[str]], bool]) -> None:
        self._quorum = quorum
        self._waiting: list[Done] = []
        self._round: list[Done] = []
        self._index = 0
        self._first_seq = 0
        self._echoed: set[str] = set()

    @property
    def in_flight(self) -> bool:
        """A round was begun and is not confirmed."""
        return bool(self._round)

    @property
    def waiting(self) -> bool:
        """Reads wait for a round to begin."""
        return bool(self._waiting)

    def add(self, done: Done) -> None:
        """A read arrives."""
        self._waiting.append(done)

    def begin(self, first_seq: int, commit_index: int) -> None:
        """Begin a round for all waiting reads; its questions are numbered from ``first_seq`` on.

        The caller has made sure that an entry of its own term is committed: before that its commit index may be
        behind what an earlier leader acknowledged.
        """
        assert not self._round
        self._round, self._waiting = self._waiting, []
        self._first_seq, self._index = first_seq, commit_index
        self._echoed = set()
        self.confirm()

    def echo(self, peer: str, seq: int) -> None:
        """A peer answered question ``seq`` and knows no higher term."""
        if self._round and seq >= self._first_seq:
            self._echoed.add(peer)
            self.confirm()

    def unconfirmed(self, peer: str) -> bool:
        """The round in flight still lacks this peer's answer."""
        return bool(self._round) and peer not in self._echoed

    def fail(self) -> None:
        """Leadership was lost: all reads are told."""
        failed, self._round, self._waiting = self._round + self._waiting, [], []
        for done in failed:
            done(None)

    def confirm(self) -> None:
        """Look whether the round is confirmed; also when a majority has become another one."""
        if self._round and self._quorum(self._echoed):
            confirmed, self._round = self._round, []
            for done in confirmed:
                done(self._index)
