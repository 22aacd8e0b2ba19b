"""What a node offers to the driver above it, whether it is hosted in this process or attached to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from ..sqlite.entry import Base, Outcome, Result, Statement
from ..sqlite.errors import StatementError
from ..sqlite.functions import Registrar
from ..sqlite.readers import ReaderPool
from . import protocol
from .events import Observer
from .requests import Request


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files: this node's certificate and key, and the authorities its peers may be signed by."""

    certificate: Path
    key: Path
    authority: tuple[Path, ...]


class ArchiveStore(Protocol):
    """Files by name, somewhere else. Every method may wait for long, and raise anything. One thread at a time."""

    def names(self, folder: str = "") -> list[str]:
        """The names of the files in a folder; none where there is no such folder."""

    def folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder; none where there is no such folder."""

    def open(self, name: str) -> IO[bytes]:
        """A file to be read."""

    def write(self, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
        """Keep what ``source`` holds under this name."""

    def delete(self, name: str) -> None:
        """Remove a file; harmless where there is none."""

    def __str__(self) -> str:
        """For messages."""


@dataclass(frozen=True, slots=True)
class ArchiveConfig:
    """The archive of the log: ``open`` gives where it is, every ``interval`` seconds what was committed is shipped,
    and up to ``hold`` bytes more of the log than usual are kept while it cannot be."""

    open: Callable[[], ArchiveStore]
    interval: float
    hold: int


class Discovery(Protocol):
    """Where members are looked up. ``expect``: how many found a group together; None where this node only joins."""

    @property
    def expect(self) -> int | None:
        """See above."""

    def look(self) -> frozenset[str]:
        """The addresses that are there now, any number of them. May wait for seconds, and raise anything."""

    def __str__(self) -> str:
        """For messages."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node of one group, checked and complete.

    ``name`` is the path of the SQLite file. ``address`` ("host:port") is the node's identity; ``peers`` are all
    voters that its group begins with, itself included; a group of one has ``peers == (address,)``. A node that
    comes later has none: it asks one of ``join`` to be admitted, as a ``learner`` or to become a voter. All that
    matters only until the node's log knows the members. ``readmit``: a member whose folder was lost asks to be
    admitted again. ``second_secret`` is as good as ``secret``, while one replaces the other. Times are seconds.
    ``election_timeout`` is the least one, which grows where members are far away
    unless ``fixed_election_timeout``. ``lease_timeout`` None: an idle holder of the write lease keeps it (test
    databases). ``durable`` False: nothing is fsynced (test databases). ``apply_timeout`` is by how much deadlines
    may be put off while one long statement is being applied; ``max_transaction_bytes`` the size of the largest
    transaction, encoded; ``wal_limit`` the size (bytes) of the -wal file above which old readers are found out.
    ``log_entries`` and ``log_bytes`` are how much of the Raft log is kept for members that lag; ``snapshot_rate`` is
    how fast (bytes per second) the database is sent to those that lag more. ``registrars`` register SQL functions and
    collations on every connection. ``mode`` is the mode of the files and the socket. ``on_divergence``: what a node
    does whose content differs from that of the majority, "resync" or "stop"; ``observers`` are told of it and of the
    other :mod:`~.events`, in a thread of their own. ``reluctant``: this process will soon end, so that its node
    leaves leading the group to others. ``discovery``: where to look for members, in place of ``peers`` and
    ``join``. ``archive``: where the log is kept for good, if it is. ``protocols`` are the
    oldest and the newest version of the protocol that it speaks.
    """

    name: Path
    address: str
    peers: tuple[str, ...]
    secret: str | None = field(default=None, repr=False)
    tls: TLSFiles | None = None
    timeout: float = 5.0
    election_timeout: float = 0.4
    fixed_election_timeout: bool = False
    apply_timeout: float = 60.0
    max_transaction_bytes: int = 256 * 1024 * 1024
    wal_limit: int = 64 * 1024 * 1024
    log_entries: int = 10_000
    log_bytes: int = 128 * 1024 * 1024
    snapshot_rate: int = 32 * 1024 * 1024
    lease_timeout: float | None = 1.0
    mode: int = 0o600
    host: bool = True
    durable: bool = True
    registrars: tuple[Registrar, ...] = ()
    on_divergence: Literal["resync", "stop"] = "resync"
    observers: tuple[Observer, ...] = ()
    reluctant: bool = False
    archive: ArchiveConfig | None = None
    join: tuple[str, ...] = ()
    learner: bool = False
    discovery: Discovery | None = None
    readmit: bool = True
    second_secret: str | None = field(default=None, repr=False)
    protocols: tuple[int, int] = field(default_factory=lambda: (protocol.OLDEST, protocol.NEWEST))

    @property
    def closed(self) -> bool:
        """No other node can belong to its group: it opens no port, since nobody could prove who they are."""
        return len(self.peers) == 1 and not self.join and not (":" in self.address and (self.secret or self.tls))

    @property
    def folder(self) -> Path:
        """The node's folder, beside the database file: log, lock and socket."""
        return self.name.with_name(self.name.name + ".raft")


class Moved(Exception):
    """What lay below a transaction on scratch was applied: it is to :meth:`~WriteSession.resume` and be run again."""


class LeaseLost(Exception):
    """A transaction lost its place on scratch; the text says why. It is to begin a new session and be run again."""


class WriteSession(Protocol):
    """An interactive transaction that has the write lease, working on scratch.

    Used by one thread at a time. Nothing of it is committed before :meth:`commit` returns. After :meth:`commit` or
    :meth:`rollback`, or after any of its methods raised LeaseLost, HostLost or Unavailable, the session is over.
    After Moved nothing of the transaction is on scratch, and :meth:`resume` begins it again under the same lease.
    """

    @property
    def base(self) -> Base:
        """The state it works on top of."""

    def execute(self, statement: Statement) -> Result:
        """Run on scratch (reads, writes and SAVEPOINT commands alike).

        Raises StatementError (the statement's own; the transaction goes on), Moved, LeaseLost, HostLost (the process
        with the scratch ended, and another session may be begun at once).
        """

    def repeat(self, statements: Sequence[Statement]) -> list[Result | StatementError]:
        """Run statements that were run before, and give what each of them gave. Raises Moved, LeaseLost, HostLost."""

    def resume(self) -> None:
        """After Moved: begin again on the newest state; ``base`` names it. Raises LeaseLost, HostLost."""

    @property
    def in_transaction(self) -> bool:
        """False when SQLite itself ended the transaction (OR ROLLBACK, RAISE(ROLLBACK))."""

    def commit(self, statements: Sequence[Statement], *, timeout: float) -> None:
        """Replicate the net writes with this session's base, and return when they are applied here.

        An open deferred foreign key raises StatementError (SQLITE_CONSTRAINT_FOREIGNKEY) and leaves the
        session open; so does Moved. Else the session is over; raises LeaseLost (its base is gone: surely not
        committed), Unavailable, LeaseTimeout (surely not committed) or CommitOutcomeUnknown. A host that ends
        meanwhile is replaced: never raises HostLost.
        """

    def rollback(self) -> None:
        """Roll scratch back and give the lease up. Never raises, and may be called again."""


class Node(Protocol):
    """One node, shared by all connections of this process. Thread-safe."""

    @property
    def config(self) -> NodeConfig:
        """What it was opened with."""

    @property
    def readers(self) -> ReaderPool:
        """Read-only connections to the node's file."""

    def submit(self, statement: Statement, pragmas: Mapping[str, int], *, solo: bool, timeout: float) -> Result:
        """Replicate one autocommit statement; return when it is applied here.

        Sent again, under one id, when leaders or hosts change. Raises StatementError, Unavailable and LeaseTimeout
        (surely not executed), CommitOutcomeUnknown (the time is up).
        """

    def begin(self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False) -> WriteSession:
        """Take the write lease and open scratch at the newest state. ``reason`` is the first statement's
        text, for messages and status. Raises LeaseTimeout, Unavailable, HostLost (no host answers in time)."""

    def read_barrier(self, *, timeout: float) -> None:
        """Return when this node has applied all that was committed anywhere before the call (ReadIndex,
        Raft thesis 6.4). Raises Unavailable, HostLost."""

    def limit_staleness(self, limit: float, *, timeout: float) -> None:
        """Return when this node has applied all that was committed anywhere ``limit`` seconds before the call.

        By this node's clock alone. Asks nobody while that is known, else as :meth:`read_barrier`, and raises as it
        does.
        """

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """Return when this node has applied a state that was seen somewhere in the group.

        False: this node has applied all that is committed anywhere, and that state is not part of it (the group is
        another one, or was restored). Raises Unavailable, HostLost.
        """

    def status(self) -> dict[str, Any]:
        """What `manage.py raft status` shows; plain types only."""

    def figures(self) -> dict[str, Any]:
        """What the process that hosts the node has counted and measured, for all of its processes; plain types only.

        ``counters`` and ``writes`` (by how they ended) have numbers, ``histograms`` have what
        :meth:`~.figures.Histogram.plain` gives, ``recent`` the points of :class:`~.recent.Recent`.
        """

    def note(self, what: str) -> None:
        """Count something that happened in this process, one of :data:`~.figures.NOTES`; never waits or raises."""

    def close(self) -> None:
        """Release this process's share: stop hosting, or detach. Idempotent."""


class BackendSession(Protocol):
    """An interactive transaction on the host's scratch.

    As WriteSession, but its COMMIT is a request that was numbered and encoded by its author's process, which sends
    it again elsewhere when the host ends meanwhile. ``claim`` (16 bytes) names its hold on the write lease.
    """

    @property
    def base(self) -> Base:
        """See WriteSession."""

    @property
    def claim(self) -> bytes:
        """See above."""

    def execute(self, statement: Statement) -> Result:
        """See WriteSession."""

    def repeat(self, statements: Sequence[Statement]) -> list[Result | StatementError]:
        """See WriteSession."""

    def resume(self) -> None:
        """See WriteSession."""

    @property
    def in_transaction(self) -> bool:
        """See WriteSession."""

    def seal(self) -> None:
        """No more statements: scratch is left, the lease is kept until :meth:`commit` or :meth:`rollback`.

        For a transaction that needs more than one request to be committed. Raises as commit does for an open
        deferred foreign key, and when the lease is lost.
        """

    def commit(self, request: Request, *, timeout: float) -> Outcome:
        """Have the request, whose ``lease`` is this session's claim, executed; as :meth:`Backend.execute`.

        An open deferred foreign key raises StatementError (SQLITE_CONSTRAINT_FOREIGNKEY) before anything is sent,
        and leaves the session open; so does Moved. Else the session is over.
        """

    def rollback(self) -> None:
        """See WriteSession."""


class Backend(Protocol):
    """The way to a node: hosted in this process, or attached to the process that hosts it. Thread-safe.

    Everything raises :class:`~django_raftsqlite.exceptions.HostLost` when the host ends or does not answer; then
    ``lost`` is true and another backend must be had.
    """

    @property
    def lost(self) -> bool:
        """Whether the host is gone, and this object of no more use."""

    def open_origin(self, origin: bytes, *, timeout: float) -> None:
        """Make an origin known to the group; return when this node has applied that. May be repeated.

        Raises Unavailable and LeaseTimeout.
        """

    def close_origin(self, origin: bytes) -> None:
        """Let the group forget an origin and its outcomes. Nothing of it may be open. Does not wait, never raises."""

    def execute(self, request: Request, *, timeout: float) -> Outcome:
        """Have the request applied exactly once, however often and through however many hosts it is sent.

        Returns its outcome when this node knows it. Raises, all of them only when it was surely not executed:
        Unavailable, LeaseTimeout, LeaseLost, DataError, OriginClosed; CommitOutcomeUnknown when the time
        is up; HostLost, and then ``request.sent`` says whether it may have been executed.
        """

    def begin(
        self, pragmas: Mapping[str, int], *, reason: str, timeout: float, nowait: bool = False
    ) -> BackendSession:
        """See Node."""

    def read_barrier(self, *, timeout: float) -> None:
        """See Node."""

    def staleness(self, limit: float, *, timeout: float) -> float:
        """Seconds before the call: all that was committed anywhere until then is applied; at most ``limit``.

        Waits and raises as :meth:`Node.limit_staleness`.
        """

    def reach(self, lineage: bytes, version: int, *, timeout: float) -> bool:
        """See Node."""

    def verify(self, *, timeout: float) -> str:
        """Have all members hash their content at one log index; returns when this node has begun.

        What is returned names that in the status: ``members[...]["verified"]["id"]``. Raises Unavailable and
        LeaseTimeout.
        """

    def snapshot(self, *, timeout: float) -> str:
        """Have this node's file on its disk, and its log cut to what follows; what was done, in words.

        The file is the snapshot that stands for what is cut (Raft paper section 7): nothing is copied. What members
        in reach, or the archive, have yet to get is kept. Raises Unavailable; where the disk was only too slow, it
        is done all the same when it can be.
        """

    def change_members(self, verb: str, address: str, *, learner: bool, timeout: float) -> str:
        """Have the leader "add" or "remove" a member, or "transfer" the leadership (to the most suitable one, if
        ``address`` is empty); what was done, in words. ``learner``: it is to stay one.

        An added member is a learner when this returns. Raises OperationalError with the reason where it is refused,
        and Unavailable where nobody answered: it may still come about then.
        """

    def status(self) -> dict[str, Any]:
        """See Node."""

    def figures(self) -> dict[str, Any]:
        """See Node."""

    def note(self, counts: Mapping[str, int]) -> None:
        """What a process of the node has counted since it last told; what is not among NOTES is left out."""

    def close(self) -> None:
        """Stop hosting, or detach. Idempotent."""


OpenNode = Callable[[NodeConfig], Node]
