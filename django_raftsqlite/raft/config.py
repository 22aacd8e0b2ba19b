"""What the consensus layer is told, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .members import Members


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """One member of a group.

    ``address`` ("host:port") is where the member is found. ``peers`` are the voters that the group begins with,
    itself included; a node that comes later has none, and asks one of ``join`` to be admitted: as a ``learner`` for
    good, or as one that becomes a voter. All three matter only until the log knows the members. ``readmit``: a
    member whose disk is another one asks to be admitted again. ``log`` is the path of the log's SQLite file.
    ``election_timeout`` (seconds) is the least time without a leader's word before an election; the most is twice
    that. It grows with the round trip to the nearest majority (:class:`~.roundtrips.RoundTrips`) unless
    ``fixed_timeout``. ``certificate``, ``key`` and ``authority`` (one file or more, of whom each may have signed a
    peer's) are PEM paths, all or none. ``second_secret`` is as good as ``secret``, while one replaces the other.
    ``durable`` False: the log is
    not fsynced (test databases). ``mode`` is the mode of the log's files. ``reluctant``: it leaves leading to others
    that can; see :class:`~.reluctance.Reluctance`. ``taken_over``: the state machine begins with a state that does
    not come through the log. ``seeks``: its settings name nobody, and it is told whom to look for while it runs
    (:meth:`~.driver.RaftDriver.meet`); a group that it founds has its first leader when all founders are there.
    ``protocols``: the oldest version of the protocol that it speaks,
    which :meth:`~.driver.RaftDriver.speak` raises, and the newest.
    """

    address: str
    peers: tuple[str, ...]
    log: Path
    secret: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    authority: tuple[Path, ...] = ()
    election_timeout: float = 0.4
    fixed_timeout: bool = False
    durable: bool = True
    mode: int = 0o600
    reluctant: bool = False
    protocols: tuple[int, int] = (1, 1)
    taken_over: bool = False
    join: tuple[str, ...] = ()
    learner: bool = False
    readmit: bool = True
    seeks: bool = False
    second_secret: str | None = field(default=None, repr=False)

    @property
    def others(self) -> tuple[str, ...]:
        """Those that are named besides this one."""
        return tuple(peer for peer in (*self.peers, *self.join) if peer != self.address)

    @property
    def listens(self) -> bool:
        """Others may come: this node has a port, and can tell who they are."""
        return bool(self.others) or (":" in self.address and bool(self.secret or self.certificate))

    @property
    def heartbeat(self) -> float:
        """Seconds between two heartbeats of a leader."""
        return min(0.05, self.election_timeout / 4)


@dataclass(frozen=True, slots=True)
class RaftView:
    """A snapshot of the member's place in the group.

    ``role`` is "leader", "follower", "candidate" or "failed"; ``leader`` an address or None; ``commit_index`` and
    ``last_index`` are log indexes. ``connected`` are the peers with a live session. ``match`` (leader only) maps a
    peer to the last log index known to be on its disk. ``established``: leader whose term's no-op is committed.
    ``first_index``: where the log begins. ``behind`` (leader only): peers that lack entries which it no longer holds.
    ``members`` is the log's newest configuration, committed or not. ``waiting``: the group has not admitted this node
    yet; ``problem`` says what is in the way of that. ``election_timeout`` is the least one now, ``round_trips`` are
    the seconds to each peer, where they are known.
    """

    role: str
    term: int
    leader: str | None
    commit_index: int
    last_index: int
    connected: frozenset[str]
    match: dict[str, int]
    established: bool = False
    reason: str | None = None
    first_index: int = 1
    behind: frozenset[str] = frozenset()
    members: Members = field(default_factory=Members.none)
    waiting: bool = False
    problem: str | None = None
    election_timeout: float = 0.0
    round_trips: Mapping[str, float] = field(default_factory=dict)

    @property
    def awaits_copies(self) -> frozenset[str]:
        """As the leader: voters in reach without which there is no majority, and which lack what was cut from the
        log. Nothing is committed before they have a copy of the state. Empty where that is not so."""
        if self.role != "leader":
            return frozenset()
        voters = self.members.voters
        reachable = voters & {*self.connected, *([] if self.leader is None else [self.leader])}
        lacking = reachable & self.behind
        needed = self.members.quorum(reachable) and not self.members.quorum(reachable - lacking)
        return lacking if needed else frozenset()
