"""PreVote (Raft thesis section 9.6): ask whether an election could be won before starting it. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Set


class PreVote:
    """One member's question to its peers: would you vote for me in ``term``?

    A member that was cut off therefore comes back with the term it left with and deposes nobody (audit R14).
    ``quorum`` says whether the peers it is given, and this member, are a majority.
    """

    def __init__(self, quorum: Callable[[Set[str]], bool]) -> None:
        self._quorum = quorum
        self._granted: set[str] = set()
        self.term: int | None = None

    @property
    def won(self) -> bool:
        """A quorum, this member included, would vote for it."""
        return self.term is not None and self._quorum(self._granted)

    def begin(self, term: int) -> None:
        """Ask anew."""
        self.term = term
        self._granted = set()

    def grant(self, peer: str, term: int) -> None:
        """A peer would vote for this member in ``term``."""
        if term == self.term:
            self._granted.add(peer)

    def end(self) -> None:
        """The question is settled: a leader was heard of, the term moved on, or the election begins."""
        self.term = None
        self._granted = set()
