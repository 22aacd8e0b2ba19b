"""The replicated state machine: log entries in, the same file on every node out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apsw
import msgpack

from . import forking
from .changes import new_digest
from .connections import BUSY_TIMEOUT_MS, Connection, open_writer
from .content import pin
from .copying import (
    PAGES_AT_ONCE,
    SYNC_BYTES,
    Layout,
    inspect_copy,
    layout_of,
    need_space,
    open_copy,
    pace,
    put_in_place,
)
from .entry import (
    CLOCK_SINCE,
    SINCE,
    Base,
    Entry,
    Item,
    ItemKind,
    Outcome,
    RequestId,
    Status,
    Transaction,
    decode_entry,
    decode_transaction,
    encode_outcome,
)
from .errors import MalformedEntry, NodeFault
from .functions import Registrar
from .ledger import Ledger
from .parts import Incomplete, Part, Parted, PartTable, decode_part, decode_parted
from .restoring import Restore, decode_restore, give_state, put_together, unfit
from .tables import (
    Archive,
    State,
    create,
    load_archive,
    load_origins,
    load_outcome,
    load_parted,
    load_state,
    save_archive,
    save_protocol,
    save_state,
)
from .transactions import Decision, Runner, TransactionLost, fault, verbs
from .wal import sync
from .watch import Watch

LARGEST_KEPT = 64 * 1024
"""Bytes of an encoded outcome that are kept with its rows; a larger one is kept without them."""


NOT_ALONE = "a restore must be alone in its entry"


@dataclass(slots=True)
class _Draft:
    """What an entry makes of the state, until it is committed."""

    state: State
    ledger: Ledger
    parts: PartTable
    solo: bool
    archive: Archive | None
    verifications: list[bytes] = field(default_factory=list)

    def record(self, decision: Decision, request: RequestId) -> None:
        """Go on from digest(n-1) to digest(n)."""
        digest = new_digest(self.state.digest)
        decision.feed(digest, request)
        self.state.digest = digest.digest()


class StateMachine:
    """The apply connection: the only one that ever commits to the file.

    Invariants: what an entry did, its outcomes and ``applied_index`` are committed together or not at all, so an
    entry is applied exactly once whatever happens in between. File, digest and outcomes after an entry follow from
    the entries alone: not from how they were batched, nor from restarts, nor from what else this process did.

    ``watch`` tells whether something else wrote to the file, and is asked before each entry. ``verifications`` names
    those that the entry applied last ordered: of the state after it.

    One thread at a time. Readers and scratch have connections of their own; scratch must be rolled back before
    :meth:`apply`.
    """

    def __init__(
        self,
        path: Path,
        registrars: Iterable[Registrar],
        *,
        mode: int = 0o600,
        durable: bool = True,
        speaks: int | None = None,
    ) -> None:
        """Open ``path``, which is made with ``mode`` if missing; an existing SQLite database is taken over as it is.

        ``speaks`` is the newest version of the protocol whose entries it applies; None: all that it can.

        Raises apsw.Error when the file cannot be used.
        """
        self._path = path
        self._registrars = tuple(registrars)
        self._mode = mode
        self._durable = durable
        self._speaks = max(SINCE.values()) if speaks is None else speaks
        self.verifications: list[bytes] = []
        self._open()

    def _open(self) -> None:
        self._connection = open_writer(self._path, self._registrars, self._mode, self._durable, checkpoints=True)
        try:
            self._wal = Path(self._connection.filename_wal)
            create(self._connection)
            self._runner = Runner(self._connection)
            self.watch = Watch(self._path, self._connection)
            self._layout = layout_of(self._connection)
            self._load()
        except BaseException:
            self._connection.close(True)
            raise

    def _load(self) -> None:
        self._state = load_state(self._connection)
        self._origins = load_origins(self._connection)
        self._parted = load_parted(self._connection)
        self._archive = load_archive(self._connection)

    def pin(self) -> Connection:
        """A reader of the present state, whatever is applied later; for :func:`~.content.hash_content`."""
        return pin(self._path, self._registrars)

    @property
    def applied_index(self) -> int:
        """Index of the last log entry in the file; 0 in a fresh one."""
        return self._state.applied_index

    @property
    def applied_term(self) -> int:
        """Term of that entry."""
        return self._state.applied_term

    @property
    def time(self) -> int:
        """Log time (milliseconds) of the newest entry in the file; any thread."""
        return self._state.time

    @property
    def base(self) -> Base:
        """The identity of the committed state."""
        return self._state.base

    @property
    def lineage(self) -> bytes:
        """16 bytes; zeros until a restore or a recovery gives another."""
        return self._state.lineage

    @property
    def digest(self) -> bytes:
        """32 bytes over all that was decided so far; equal on all nodes at equal ``applied_index``."""
        return self._state.digest

    @property
    def archive(self) -> Archive | None:
        """The archive of the group's log, if it was begun; any thread."""
        return self._archive

    @property
    def protocol(self) -> int:
        """The version of the protocol that the group uses, as of ``applied_index``."""
        return self._state.protocol

    @property
    def parted(self) -> int:
        """Of how many transactions parts are kept."""
        return len(self._parted)

    @property
    def statement(self) -> str:
        """The text of the statement that is being applied, or was last; any thread."""
        return self._runner.statement

    def counts(self) -> dict[str, int]:
        """How many origins are open, how many outcomes are kept for them, and of how many transactions parts."""
        outcomes: Any = self._connection.execute("SELECT count(*) FROM _raftsqlite_outcome").fetchall()[0][0]
        return {"origins": len(self._origins), "outcomes": outcomes, "parted": self.parted}

    def holds_tables(self) -> bool:
        """Whether the file holds anything but our own tables."""
        return bool(
            self._connection.execute(
                "SELECT 1 FROM sqlite_schema WHERE tbl_name NOT LIKE '\\_raftsqlite\\_%' ESCAPE '\\' LIMIT 1"
            ).fetchall()
        )

    def is_open(self, origin: bytes) -> bool:
        """Whether requests of this origin are accepted."""
        return origin in self._origins

    def outcome(self, request: RequestId) -> Outcome | None:
        """The kept outcome of a request.

        DONE with ``result`` None: it is committed, and its rows were too many to keep, or its author had seen them.
        """
        return load_outcome(self._connection, request)

    @property
    def wal_bytes(self) -> int:
        """Size of the -wal file; any thread. Raises OSError."""
        return self._wal.stat().st_size

    def write_back(self) -> tuple[int, int]:
        """A passive checkpoint: waits for nobody. How many frames the WAL has, and how many are in the file now.

        Less than all, where somebody reads an older state. Raises apsw.Error.
        """
        try:
            return self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        finally:
            self.watch.note()

    def empty_wal(self, keep_waiting: Callable[[], bool]) -> bool:
        """Write all of the WAL back and truncate it to nothing; False where its readers did not end in time.

        Nobody can write meanwhile; ``keep_waiting`` is asked again and again while a reader is in the way, and
        sleeps as long as it wants. Raises apsw.Error, and then nothing is lost: what was not written back stays.
        Raises ForeignWrite; scratch must be rolled back.
        """
        connection = self._connection
        self.watch.check_before()
        connection.set_busy_handler(lambda _attempt: keep_waiting())
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
        finally:
            connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            self.watch.note()
        return True

    @property
    def layout(self) -> Layout:
        """The layout of the file, which it keeps for life."""
        return self._layout

    def install(self, copy: Path, go_on: Callable[[], object]) -> None:
        """Take over all that another node's copy holds, in one SQLite transaction, and have it on the disk.

        Who reads goes on to see the old state until his transaction ends, and the new one then. ``go_on`` is called
        again and again, and may raise to end it. After an exception ``applied_index`` tells whether the file is the
        old or the new one; after OSError it may be the old one again when the machine loses its power. Raises
        ForeignWrite, NoSpace, apsw.Error, and NodeFault for a copy that is not newer, or has another layout.
        """
        self.watch.check()
        self._runner.statement = "a copy of another node's database"
        try:
            self._take_over(copy, go_on)
        finally:
            self._load()
        self._taken_over()
        self.sync()

    def _taken_over(self) -> None:
        self._load()
        self._runner.forget_all()
        self.watch.reset()

    def replace(self, copy: Path, go_on: Callable[[], object]) -> None:
        """Put another node's copy in the place of the file, whatever has become of that, and have it on the disk.

        Who has the old file open goes on to see it: readers must be told. Scratch must be closed. ``go_on`` is as for
        :meth:`install`. Raises NoSpace, OSError and apsw.Error, and NodeFault for what is no copy.
        """
        self._runner.statement = "a copy of another node's database"
        inspect_copy(copy)
        put = put_in_place(copy, self._path, self._mode, go_on)
        # What is left in the old file's WAL must not be written to anything.
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self.close()
        try:
            put()
        finally:
            self._open()
        self.sync()

    def _take_over(self, copy: Path, go_on: Callable[[], object]) -> None:
        found = inspect_copy(copy)
        if found.index <= self.applied_index or found.layout != self._layout:
            raise NodeFault(f"a copy at {found.index} with {found.layout} cannot replace {self.applied_index}")
        # All of it goes through the WAL, and then into the file.
        need_space(self._path.parent, 2 * found.size - self._path.stat().st_size)
        source = open_copy(copy)
        try:
            with self._connection.backup("main", source, "main") as backup:
                done = 0
                while not backup.done:
                    go_on()
                    backup.step(PAGES_AT_ONCE)
                    done += PAGES_AT_ONCE * found.layout.page_size
                    if done >= SYNC_BYTES:
                        done = 0
                        pace(self.sync)
        finally:
            with forking.opening:
                source.close(True)

    def sync(self) -> int:
        """Have the file on the disk up to an index, which is returned: it never goes back behind it. Any thread.

        It holds nobody up but the disk. Raises OSError, after which nothing is known.
        """
        index = self._state.applied_index
        if self._durable:
            sync(self._wal)
        return index

    def close(self) -> None:
        """Close the file; -wal stays beside it. Idempotent."""
        self._runner.close()
        self._connection.close(True)

    def apply(self, index: int, term: int, data: bytes) -> list[tuple[RequestId, Outcome]]:
        """Apply the log entry ``index`` of ``term``, whose encoding is ``data``; the outcomes in its order.

        An entry that is in the file already gives nothing. Raises NodeFault and nothing else: then the file is as
        it was after the entry before, and the call may be made again (at once, where ``retry`` is true).
        """
        if index <= self._state.applied_index:
            return []
        if self._connection.in_transaction:
            self._recover()
        self._runner.statement = ""
        try:
            return self._apply(index, term, decode_entry(data))
        except NodeFault:
            self._recover()
            raise
        except Exception as error:
            self._recover()
            raise fault(error) from error
        except BaseException:
            self._recover()
            raise

    def _recover(self) -> None:
        """Back to the last commit, in the file and in memory."""
        with suppress(apsw.Error):
            self._runner.abandon()
        # The file decides what was committed: a COMMIT that failed may yet have been written.
        with suppress(apsw.Error):
            self._load()

    def _apply(self, index: int, term: int, entry: Entry) -> list[tuple[RequestId, Outcome]]:
        forced: dict[int, Decision | None] = {}
        while True:
            try:
                return self._attempt(index, term, entry, forced)
            except TransactionLost as lost:
                # A statement ended the whole SQLite transaction (OR ROLLBACK, RAISE(ROLLBACK)): the others of the
                # batch must not suffer. Again from the first, with this one decided. No position comes up thrice.
                forced[lost.position] = lost.decision
                self._runner.abandon()

    def _attempt(
        self, index: int, term: int, entry: Entry, forced: dict[int, Decision | None]
    ) -> list[tuple[RequestId, Outcome]]:
        runner = self._runner
        if entry.solo and len(entry.items) != 1:
            raise MalformedEntry("a solo entry holds one item")
        self._check_protocol(entry)
        wanted = [_wanted(item) for item in entry.items]
        self.watch.check_files()
        draft = self._draft(index, term, entry)
        if entry.solo and isinstance(wanted[0], Restore) and self._settled(draft, wanted[0].request) is None:
            refused = self._restore(draft, wanted[0])
            if refused is None:
                return [(wanted[0].request, Outcome(Status.DONE))]
            forced[0] = refused
        draft = self._draft(index, term, entry)
        alone = self._alone(draft, wanted[0]) if entry.solo else None
        # VACUUM cannot run in a transaction. It may run twice when this process dies before the commit below, which
        # changes nothing the second time.
        if alone is not None and not forced and "VACUUM" in verbs(alone.statements):
            if self._settled(draft, alone.request) is None:
                self.watch.check_before()
                try:
                    forced[0] = runner.vacuum(alone)
                finally:
                    self.watch.note()
            draft = self._draft(index, term, entry)
        runner.begin({} if alone is None else alone.pragmas)
        self.watch.check_data_version()
        answers: list[tuple[RequestId, Outcome]] = []
        for position, (item, asked) in enumerate(zip(entry.items, wanted, strict=True)):
            if asked is None:
                _apply_upkeep(draft, item)
                continue
            outcome = self._settled(draft, asked.request)
            if outcome is None:
                if isinstance(asked, Part):
                    outcome = self._keep_part(draft, asked)
                else:
                    suspected = position in forced and forced[position] is None
                    outcome = self._decide(draft, asked, forced.get(position), position, suspected=suspected)
            answers.append((asked.request, outcome))
        self._save(draft)
        runner.commit()
        self.watch.note()
        self._state = draft.state
        self.verifications = draft.verifications
        self._origins = draft.ledger.merged()
        self._parted = draft.parts.held
        self._archive = draft.archive
        return answers

    def _save(self, draft: _Draft) -> None:
        self._drop_parts(draft)
        draft.ledger.save()
        save_state(self._connection, draft.state)
        if draft.archive is not None and draft.archive != self._archive:
            save_archive(self._connection, draft.archive)
        if draft.state.protocol != self._state.protocol:
            save_protocol(self._connection, draft.state.protocol)

    def _restore(self, draft: _Draft, restore: Restore) -> Decision | None:
        """Take over the content of the file that was sent in parts, in one SQLite transaction; or why not, which is
        the same on all nodes.
        """
        self._runner.statement = "a restore"
        staged = self._path.with_name(f"{self._path.name}-restore")
        state, ledger, request = draft.state, draft.ledger, restore.request
        try:
            put_together(draft.parts.content(restore.parted), staged, self._mode)
            problem = unfit(staged, self._layout)
            if problem is not None:
                return Decision(Outcome(Status.ERROR, code=apsw.SQLITE_NOTADB, message=problem))
            state.lineage, state.last = restore.lineage, request.to_bytes()
            state.version += 1
            decision = Decision(Outcome(Status.DONE), changed=True, changes=restore.parted.sha256 + restore.lineage)
            draft.record(decision, request)

            def save(connection: apsw.Connection) -> None:
                ledger.connection = connection
                ledger.heard_of(request, restore.low_water, state.version, state.time)
                ledger.keep(request, encode_outcome(decision.outcome), state.version)
                ledger.save()
                save_state(connection, state)

            give_state(staged, self._connection, save)
            self.watch.check_before()
            self._take_over(staged, lambda: None)
        except Incomplete as incomplete:
            return Decision(Outcome(Status.INCOMPLETE, message=str(incomplete)))
        finally:
            staged.unlink(missing_ok=True)
        self._taken_over()
        self.verifications = []
        return None

    def _check_protocol(self, entry: Entry) -> None:
        """Stop before what a newer version of this program has put into the log."""
        since = max((_since(item) for item in entry.items), default=1)
        if entry.clock:
            since = max(since, CLOCK_SINCE)
        if since > self._speaks:
            raise NodeFault(
                f"the group uses protocol {since} from here on, and this node speaks {self._speaks} at most: upgrade "
                "django-raftsqlite on it"
            )

    def _draft(self, index: int, term: int, entry: Entry) -> _Draft:
        state = replace(self._state, applied_index=index, applied_term=term, time=max(self._state.time, entry.time))
        ledger = Ledger(self._connection, self._origins)
        return _Draft(state, ledger, PartTable(self._connection, self._parted), entry.solo, self._archive)

    def _alone(self, draft: _Draft, asked: _Asked | None) -> Transaction | None:
        """The transaction of a solo entry, which says how the SQLite transaction around it begins."""
        if isinstance(asked, Parted):
            try:
                return draft.parts.transaction(asked)
            except Incomplete:
                return None  # decided as such in its turn
        return asked if isinstance(asked, Transaction) else None

    def _settled(self, draft: _Draft, request: RequestId) -> Outcome | None:
        """The outcome of a request that is not to be executed (again)."""
        origin = draft.ledger.origin(request.origin)
        if origin is None or request.sequence < origin.low_water:
            # Never treated as new: what it did may be forgotten already.
            outcome = Outcome(Status.REFUSED, message="its origin is not open, or its outcome was forgotten")
            draft.record(Decision(outcome), request)
            return outcome
        return draft.ledger.outcome(request)

    def _decide(
        self,
        draft: _Draft,
        asked: Transaction | Parted | Restore,
        forced: Decision | None,
        position: int,
        *,
        suspected: bool,
    ) -> Outcome:
        request, state = asked.request, draft.state
        draft.ledger.heard_of(request, asked.low_water, state.version, state.time)
        parted = not isinstance(asked, Transaction)
        try:
            transaction = draft.parts.transaction(asked) if isinstance(asked, Parted) else asked
            if isinstance(transaction, Restore):
                decision = forced or Decision(Outcome(Status.ERROR, code=apsw.SQLITE_MISUSE, message=NOT_ALONE))
            elif transaction.base is not None and transaction.base != state.base:
                decision = Decision(Outcome(Status.CONFLICT, message="the state it was based on is gone"))
            else:
                decision = forced or self._runner.run(position, transaction, solo=draft.solo, suspected=suspected)
        except Incomplete as incomplete:
            decision = Decision(Outcome(Status.INCOMPLETE, message=str(incomplete)))
        if decision.changed:
            state.version += 1
            state.last = request.to_bytes()
        draft.record(decision, request)
        if parted:
            draft.parts.drop(request)
        # A conflict is kept, too: the base may come to be later, when it names a transaction that was still on its
        # way, and a copy of this request must not win then, since its author has run the transaction again.
        kept = encode_outcome(decision.outcome)
        if len(kept) > LARGEST_KEPT:
            kept = encode_outcome(replace(decision.outcome, result=None))
        draft.ledger.keep(request, kept, state.version)
        return decision.outcome

    # Parts leave no trace in the digest: what they are for does, and how it was cut must not matter.

    def _keep_part(self, draft: _Draft, part: Part) -> Outcome:
        ledger, state = draft.ledger, draft.state
        whole = RequestId(part.request.origin, part.sequence)
        origin = ledger.origin(whole.origin)
        assert origin is not None
        if whole.sequence < origin.low_water:
            return Outcome(Status.REFUSED, message="it is part of a transaction that was given up")
        if ledger.outcome(whole) is None:  # else it would stay for ever
            draft.parts.store(part, state.time)
        ledger.heard_of(part.request, part.low_water, state.version, state.time)
        return Outcome(Status.DONE)

    def _drop_parts(self, draft: _Draft) -> None:
        for request in list(draft.parts.held):
            origin = draft.ledger.origin(request.origin)
            if origin is None or request.sequence < origin.low_water:
                draft.parts.drop(request)


_Asked = Transaction | Parted | Part | Restore


def _wanted(item: Item) -> _Asked | None:
    """The request in an item, None for those that are nobody's."""
    if item.kind is ItemKind.TRANSACTION:
        return decode_transaction(item.payload)
    if item.kind is ItemKind.PARTED_TRANSACTION:
        return decode_parted(item.payload)
    if item.kind is ItemKind.PART:
        return decode_part(item.payload)
    if item.kind is ItemKind.RESTORE:
        return decode_restore(item.payload)
    return None


def _apply_upkeep(draft: _Draft, item: Item) -> None:
    state, ledger = draft.state, draft.ledger
    digest = new_digest(state.digest)
    digest.update(bytes([item.kind]) + item.payload)
    if item.kind is ItemKind.OPEN_ORIGIN:
        ledger.open(item.payload, state.version, state.time)
    elif item.kind is ItemKind.CLOSE_ORIGIN:
        ledger.close(item.payload)
    elif item.kind is ItemKind.VERIFY:
        draft.verifications.append(item.payload)
    elif item.kind is ItemKind.BEGIN_ARCHIVE:
        draft.archive = draft.archive or Archive(item.payload, state.applied_index)
    elif item.kind is ItemKind.LINEAGE:
        state.lineage = item.payload
        if draft.archive is not None:
            # The former one may hold entries that were lost here, at indexes that are given again.
            draft.archive = Archive(item.payload, state.applied_index)
    elif item.kind is ItemKind.PROTOCOL:
        state.protocol = max(state.protocol, _unpack(item)[0])
    elif item.kind is ItemKind.EXPIRE_PARTS:
        draft.parts.expire(state.time - _unpack(item)[0])
    else:
        versions, milliseconds = _unpack(item)
        for origin in ledger.expire(state.version - versions, state.time - milliseconds):
            digest.update(origin)
    state.digest = digest.digest()


def _since(item: Item) -> int:
    """The version of the protocol that an item needs."""
    return _unpack(item)[0] if item.kind is ItemKind.PROTOCOL else SINCE.get(item.kind, 1)


def _unpack(item: Item) -> list[int]:
    try:
        numbers: list[int] = msgpack.unpackb(item.payload)
        if not numbers or not all(type(number) is int for number in numbers):
            raise ValueError("there are no numbers in it")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedEntry(f"an {item.kind.name} item cannot be decoded: {error}") from error
    return numbers
