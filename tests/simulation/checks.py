"""What must hold after every step (Raft paper, figure 3, and this project's own promises)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from django_raftsqlite.raft.log import CONFIGURATION
from django_raftsqlite.sqlite.entry import Outcome, RequestId, Status

from .world import Violation

if TYPE_CHECKING:
    from .machine import Machine
    from .simulation import Simulation


class Checks:
    """What the whole run has shown so far.

    ``leaders`` by term; ``entries`` are what is committed, by index: term and hash of the payload; ``states`` are the
    digest and version after an index; ``decided`` the index and status of each request that was decided; ``votes``
    whom a member voted for in a term; ``copies`` the indexes of the copies that members took. ``spared`` is the
    leader that no fault comes near, and its term; ``healed`` how often a member took another's content because its
    own was not to be relied on.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.leaders: dict[int, str] = {}
        self.entries: dict[int, tuple[int, bytes]] = {}
        self.committed_terms: dict[int, int] = {}
        self.last_committed = 0
        self.states: dict[int, tuple[bytes, int]] = {}
        self.decided: dict[RequestId, tuple[int, Status]] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.elections = 0
        self.snapshots = 0
        self.copies: set[int] = set()
        self.healed = 0
        self.changes = 0
        self.spared: tuple[Machine, int] | None = None

    def look(self, machine: Machine) -> None:
        """After each step of a machine's host."""
        host = machine.host
        if host is None:
            return
        if host.failed is not None and self.simulation.changes.stopped(machine, host.failed):
            return
        if host.failed is not None and not machine.excused:
            raise Violation(f"{machine.address} stopped itself: {host.failed}")
        if host.suspect is None and machine.touched == "replaced":
            machine.touched = None
            self.healed += 1
        if host.suspect is not None and machine.touched is None:
            raise Violation(f"{machine.address} is suspect, and nobody touched its file: {host.suspect}")
        if host._archiver is not None and host._archiver.gap is not None:
            self.simulation.storage.lacks(machine, host._archiver.gap)
        replica = machine.replica
        if replica is None:
            return
        place = (replica.is_leader, replica.term)
        if place != machine.place:
            machine.place = place
            machine.world.note(f"{machine.address} is {'leader' if place[0] else 'follower'} in term {place[1]}")
            if self.spared is not None and place != (machine is self.spared[0], self.spared[1]):
                self._depose(machine, replica)
            if replica.is_leader:
                self._lead(machine, replica)
        if replica.commit_index != machine.commit_seen:
            self._commit(machine, replica)
        applied = host._applied.index
        if applied != machine.applied_seen:
            if applied < machine.applied_seen:
                raise Violation(f"{machine.address} went back from index {machine.applied_seen} to {applied}")
            machine.applied_seen = applied

    def _lead(self, machine: Machine, replica: Any) -> None:
        other = self.leaders.setdefault(replica.term, machine.address)
        if other != machine.address:
            raise Violation(f"{other} and {machine.address} lead in term {replica.term}")
        self.elections += 1
        assert machine.log is not None
        # Leader completeness: all that was committed in lower terms.
        for index in range(self.last_committed, 0, -1):
            if self.committed_terms[index] >= replica.term:
                continue
            if machine.log.terms.get(index, self.entries_term(index)) != self.entries_term(index):
                raise Violation(
                    f"{machine.address} leads in term {replica.term}, and its entry {index} is not the committed one"
                )
            if machine.log.last_index < index:
                raise Violation(f"{machine.address} leads in term {replica.term} without committed entry {index}")
            break

    def _depose(self, machine: Machine, replica: Any) -> None:
        """PreVote: who was away does not disturb a leader that a majority hears (Raft thesis, 9.6)."""
        assert self.spared is not None
        leader, term = self.spared
        if replica.term > term or machine is leader:
            raise Violation(
                f"{leader.address} led in term {term} and was heard by a majority, and {machine.address} is "
                f"{'leader' if replica.is_leader else 'follower'} in term {replica.term}"
            )

    def entries_term(self, index: int) -> int:
        """The term of a committed entry."""
        return self.entries[index][0]

    def _commit(self, machine: Machine, replica: Any) -> None:
        log, index = machine.log, replica.commit_index
        assert log is not None
        if index < machine.commit_seen:
            raise Violation(f"{machine.address}'s commit index went back from {machine.commit_seen} to {index}")
        if index > log.last_index:
            raise Violation(f"{machine.address} counts {index} as committed and has entries up to {log.last_index}")
        for each in range(max(machine.commit_seen, log.first_index - 1) + 1, index + 1):
            term = log.terms.get(each)
            known = self.entries.get(each)
            if known is not None and known[0] != term:
                raise Violation(
                    f"entry {each} of term {known[0]} was committed, {machine.address} has one of term {term}"
                )
            if known is None:
                command = log.entry(each)[0]
                self.changes += command[:1] == CONFIGURATION
                self._committed_first(
                    machine, each, term or 0, hash_payload(command[1:] if command[:1] == b"\0" else b"")
                )
        machine.commit_seen = index

    def _committed_first(self, machine: Machine, index: int, term: int, content: bytes) -> None:
        self.entries[index] = (term, content)
        self.committed_terms[index] = machine.replica.term if machine.replica is not None else term
        self.last_committed = max(self.last_committed, index)
        holders = [m.address for m in self.simulation.machines if m.holds(index, term)]
        machine.world.note(f"{machine.address} commits {index} of term {term}, on the disks of {','.join(holders)}")
        acknowledged = {m.address for m in self.simulation.machines if m.acknowledged(index, term)}
        if index > 1 and not self._enough(machine, index, acknowledged):
            raise Violation(
                f"entry {index} counts as committed on {machine.address}, and is on the disks of {holders} alone"
            )

    def _enough(self, machine: Machine, index: int, holders: set[str]) -> bool:
        """Whether these are a majority of a configuration that was in force at an entry, or came after it."""
        assert machine.log is not None
        at = machine.log.members_at(index).index
        known = [members for members in machine.log._configurations if members.index >= at]
        return any(members.quorum(holders) for members in known)

    def dropped(self, machine: Machine, terms: dict[int, int], first: int) -> None:
        """A log drops its entries from an index on: none of them may be a committed one."""
        for index, term in terms.items():
            if index >= first and index in self.entries and self.entries[index][0] == term:
                raise Violation(f"{machine.address} drops entry {index} of term {term}, which is committed")

    def committed(self, machine: Machine, index: int, term: int, payload: bytes) -> None:
        """A node is handed a committed entry."""
        if machine.replica is not None:
            self.look(machine)
        known = self.entries.get(index)
        if known is None:
            self._committed_first(machine, index, term, hash_payload(payload))
        elif known != (term, hash_payload(payload)):
            raise Violation(f"entry {index} is another one on {machine.address} than where it was committed first")

    def applied(self, machine: Machine, state: Any, index: int, outcomes: list[tuple[RequestId, Outcome]]) -> None:
        """A node has applied an entry."""
        found = (state.digest, state.base.version)
        if self.simulation.restores.watched and self.simulation.ready and index not in self.states:
            self.simulation.restores.applied(machine, state, index)
        known = self.states.setdefault(index, found)
        if known != found:
            raise Violation(
                f"after entry {index} {machine.address} has version {found[1]} and digest {found[0].hex()[:8]}, "
                f"others have {known[1]} and {known[0].hex()[:8]}"
            )
        machine.world.note(f"{machine.address} applies {index}: {found[1]} {found[0].hex()[:8]}")
        for request, outcome in outcomes:
            first = self.decided.setdefault(request, (index, outcome.status))
            if first[0] != index and outcome.status not in (first[1], Status.REFUSED):
                raise Violation(
                    f"request {request.sequence} is {first[1].name} at {first[0]}, {outcome.status.name} at {index}"
                )

    def installed(self, machine: Machine, state: Any) -> None:
        """A node has taken over another's state."""
        found, index = (state.digest, state.base.version), state.applied_index
        if self.states.get(index, found) != found:
            raise Violation(f"the copy that {machine.address} took has not the state of index {index}")
        self.snapshots += 1
        self.copies.add(index)
        if machine.touched is not None:
            machine.touched = "replaced"
        machine.world.note(f"{machine.address} takes a copy at {index}: {found[1]} {found[0].hex()[:8]}")

    def voted(self, address: str, term: int, candidate: str) -> None:
        """A member's vote leaves it."""
        disk = self.simulation.machine_at(address).disks
        known = self.votes.setdefault((f"{address} disk {disk}", term), candidate)
        if known != candidate:
            raise Violation(f"{address} votes for {known} and for {candidate} in term {term}")


def hash_payload(payload: bytes) -> bytes:
    """By which entries are compared."""
    return hashlib.blake2b(payload, digest_size=8).digest()
