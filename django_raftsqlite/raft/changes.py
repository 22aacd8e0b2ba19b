"""The leader's part in changes of the members: one at a time, and when a newcomer becomes a voter. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set

from .members import ChangeRefused, Member, Members, Role


class CatchUp:
    """Whether newcomers have the log (Raft thesis section 4.2.1).

    A newcomer is sent the log in rounds: each ends when it has what the leader had when the round began. It has
    caught up when one took less than an election timeout, its distance apart: then what it still lacks keeps nobody
    waiting for longer.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._rounds: dict[str, tuple[int, float]] = {}

    def caught_up(self, peer: str, match: int, last_index: int, now: float, *, distance: float = 0.0) -> bool:
        """To be asked again and again; ``match`` is what the newcomer has on its disk, ``distance`` the round trip to
        it, in seconds, of which a round takes two: the entries may wait for room on their way."""
        target, began = self._rounds.setdefault(peer, (last_index, now))
        if match < target:
            return False
        self._rounds[peer] = (last_index, now)
        return now - began < self._timeout + 2 * distance

    def keep(self, peers: Set[str]) -> None:
        """Forget all others."""
        self._rounds = {peer: known for peer, known in self._rounds.items() if peer in peers}


def check(members: Members, changed: Members, *, commit_index: int, established: bool, heard: Set[str]) -> None:
    """Raise ChangeRefused unless the leader may write ``changed`` now.

    ``heard`` are the members it has heard of lately, and itself. One change at a time, after an entry of its own
    term is committed (the fault in the first description of single-server changes, Raft thesis section 4.1).
    """
    if not established:
        raise ChangeRefused("the leader has just been elected; try again", passing=True)
    missing = sorted(member.address for member in members if not member.id and member.address not in heard)
    if members.founding and missing and changed.by_address.keys() - members.by_address.keys():
        raise ChangeRefused(
            f"the first members of the group have not all been up at once yet: start {', '.join(missing)}, or remove "
            "what is not to come",
            passing=True,
        )
    if members.index > commit_index:
        raise ChangeRefused("another change of the members is under way; try again when it is done", passing=True)
    if not changed.quorum(heard):
        there = len(changed.voters & heard)
        raise ChangeRefused(
            f"of the {len(changed.voters)} voters that there would be only {there} are in reach, so that nothing "
            "could be committed any more. Start the others first"
        )


def unbound(members: Members, ids: Mapping[str, bytes]) -> dict[str, bytes]:
    """The ids to be written down: of members whose ids were not known, and that are there.

    Of those who founded the group, of all or of none: one whose id is not among those known is no longer believed,
    and with another one gone those who are left, a majority, would elect nobody.
    """
    missing = [member.address for member in members if not member.id]
    if members.founding and not all(ids.get(address) for address in missing):
        return {}
    return {address: ids[address] for address in missing if ids.get(address)}


def admitted(members: Members, address: str, member_id: bytes, *, learner: bool, again: bool) -> Members | None:
    """What a node that asks to be let in is to be written down as; None when it is a member already.

    Raises ChangeRefused.
    """
    member: Member | None = members.get(address)
    if member is None:
        if again:
            raise ChangeRefused(f'{address} is not a member any more; it may ask with OPTIONS["join"]')
        return members.add(address, learner=learner, member_id=member_id)
    if member.id == member_id:
        return None
    if not member.id and member.role is not Role.VOTER:
        return members.bind({address: member_id})
    if not member.id and members.founding:
        return None
    return members.readmit(address, member_id)
