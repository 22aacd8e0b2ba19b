"""Who has a session with this member, and who of them is believed to be the member whose address it has. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from .members import Members


class Peers:
    """The sessions of one member.

    ``sessions`` has the number of the first question that may be asked in each; numbers only grow, so an answer to
    a lower one is of a session that is over (audit T1). ``strangers`` are those with a session that are not known to
    be of this group. ``recognised`` are the others that come with the disk they were admitted with, as of the latest
    :meth:`review`: questions are taken from whoever has a session, since an election or an entry may come from a
    member that this one has not heard of yet; answers count only of them (Raft thesis section 4.1; a voter with an
    empty disk would elect a leader that lacks what was committed).
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self.sessions: dict[str, int] = {}
        self.strangers: set[str] = set()
        self.recognised: frozenset[str] = frozenset()
        self._ids: dict[str, bytes] = {}

    def begin(self, peer: str, member_id: bytes, *, first_seq: int, same_group: bool) -> None:
        """A session begins with who has no other; ``member_id`` is the id that its log was made with."""
        self.sessions[peer] = first_seq
        self._ids[peer] = member_id
        if not same_group:
            self.strangers.add(peer)

    def end(self, peer: str) -> bool:
        """Its session is over; whether there was one."""
        if self.sessions.pop(peer, None) is None:
            return False
        self._ids.pop(peer, None)
        self.strangers.discard(peer)
        return True

    def clear(self) -> None:
        """All sessions are over."""
        self.sessions.clear()
        self.recognised = frozenset()

    def review(self, members: Members, *, waiting: bool) -> tuple[frozenset[str], frozenset[str]]:
        """Look again who is recognised: who is no more, and who is now. ``waiting``: this member is none itself."""
        known = frozenset(
            peer
            for peer in self.sessions
            if peer not in self.strangers
            and not waiting
            and members.recognises(peer, self._ids[peer])
            and peer != self._address
        )
        before, self.recognised = self.recognised, known
        return before - known, known - before

    def id_of(self, peer: str) -> bytes:
        """The id that the log of a peer with a session was made with."""
        return self._ids[peer]

    @property
    def bindable(self) -> Mapping[str, bytes]:
        """The ids of those of this group, whether they are recognised or not."""
        return {peer: self._ids[peer] for peer in self.sessions if peer not in self.strangers}
