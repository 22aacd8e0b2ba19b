"""The Raft log on a SQLite file of its own: entries, term, vote, members, and where the log starts."""

from __future__ import annotations

import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import apsw
from pysyncobj.journal import Journal

from .members import Members

Entry = tuple[bytes, int, int]
"""(command, index, term), in pysyncobj's order; the command is a type byte and the payload."""

MAX_ENTRY = 8 * 1024 * 1024
"""The largest payload of one entry, in bytes (audit R17: entries are never cut into pieces)."""

CONFIGURATION = b"\x10"
"""Type byte of an entry that says who the members are from it on; the others are pysyncobj's."""

_APPLICATION_ID = 0x52665371
_FORMAT = 2
_BLOCK_ENTRIES = 64
_BLOCK_BYTES = 1024 * 1024
_CUT_ENTRIES = 512
_CUT_BYTES = 1024 * 1024
"""What :meth:`RaftLog.compact` drops at once, so that it keeps no heartbeat waiting."""
_LOOK_ENTRIES = 20_000
_ROW_BYTES = 16  # that an entry takes up besides its command
_HEADER = struct.Struct("<qq")

_SCHEMA = """
CREATE TABLE entry (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, crc INTEGER NOT NULL, command BLOB NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
# Format 2; what a log of format 1 lacks.
_MEMBERS = "CREATE TABLE members (idx INTEGER PRIMARY KEY, members BLOB NOT NULL)"


class LogFault(Exception):
    """The log cannot be trusted or written any more; the member must stop promising anything.

    ``str()`` of it is the reason, for the status and the operator.
    """


class StateMismatch(LogFault):
    """The log is sound, but the state machine's file is not one that it led to."""


def _checksum(command: bytes, index: int, term: int) -> int:
    return zlib.crc32(command, zlib.crc32(_HEADER.pack(index, term)))


class LogSlice(Sequence[Entry]):
    """A range of the log that reads an entry when it is looked at (audit R20).

    Valid until the log is next written.
    """

    __slots__ = ("_log", "_range")

    def __init__(self, log: RaftLog, indexes: range) -> None:
        self._log = log
        self._range = indexes

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> LogSlice: ...
    def __getitem__(self, item: int | slice) -> Entry | LogSlice:
        if isinstance(item, slice):
            return LogSlice(self._log, self._range[item])
        return self._log.entry(self._range[item])

    def __iter__(self) -> Iterator[Entry]:
        return (self._log.entry(index) for index in self._range)


class RaftLog(Journal):  # type: ignore[misc]
    """Raft's persistent state (Raft paper, figure 2) behind pysyncobj's Journal interface.

    Writes are buffered in an open SQLite transaction; :meth:`sync` commits it, which is one fsync of the WAL
    (``synchronous=FULL``). Until then nothing of it may be promised to anybody. ``path`` is created with ``mode``
    whatever the umask, and locked against other processes as long as it is open. ``durable`` False fsyncs nothing.

    Invariants: indexes are contiguous from ``first_index`` to ``last_index``; the entry ``first_index`` is part of
    the state machine's state, or the first of all, and only its term is of use; an entry at or below the commit
    index is never replaced; ``durable_index <= last_index``; the newest entries, at most ``tail_bytes`` and
    ``tail_entries`` of them, are in memory, all others are read from the file and checked against their checksum.

    ``members`` is the newest configuration in it, committed or not: one is in force from the moment it is written,
    and no longer than its entry is there (Raft thesis section 4.1). The one that was in force at ``first_index`` is
    kept beside the entries.

    After any method raised LogFault all others raise it too. Used by one thread. ``synced`` is told how many seconds
    each fsync took.
    """

    def __init__(
        self,
        path: Path,
        *,
        mode: int = 0o600,
        durable: bool = True,
        tail_bytes: int = 8 * 1024 * 1024,
        tail_entries: int = 16384,
    ) -> None:
        self.path = path
        self.fault: str | None = None
        self.dirty = False
        self.synced: Callable[[float], object] = lambda _seconds: None
        self._tail_bytes = tail_bytes
        self._tail_entries = tail_entries
        self._tail: dict[int, Entry] = {}
        self._tail_first = 0
        self._tail_size = 0
        self._block: list[Entry] = []
        self._configurations: list[Members] = []
        _create(path, mode)
        try:
            self._connection: apsw.Connection | None = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            self._open(durable)
        except apsw.BusyError as error:
            self.close()
            raise self._fail(f"another process has the Raft log {path} open") from error
        except (apsw.Error, OSError) as error:
            self.close()
            raise self._fail(f"the Raft log {path} cannot be opened: {error}") from error
        except LogFault:
            self.close()
            raise

    def _open(self, durable: bool) -> None:
        # Exclusive before WAL: then the WAL's index lives in our memory, and no -shm file is made.
        self._execute("PRAGMA locking_mode=EXCLUSIVE")
        self._execute("PRAGMA journal_mode=" + ("WAL" if durable else "MEMORY"))
        self._execute("PRAGMA synchronous=" + ("FULL" if durable else "OFF"))
        self._execute("BEGIN EXCLUSIVE")
        (application,), (version,) = self._execute("PRAGMA application_id") + self._execute("PRAGMA user_version")
        if (application, version) == (0, 0):
            for statement in _SCHEMA.strip().split(";\n"):
                self._execute(statement)
            self._execute(_MEMBERS)
            self._execute(f"PRAGMA application_id={_APPLICATION_ID}")
            self._execute(f"PRAGMA user_version={_FORMAT}")
            self._set("first_index", b"1")
            self._set("member_id", secrets.token_bytes(16))
        elif (application, version) == (_APPLICATION_ID, 1):
            self._execute(_MEMBERS)
            self._execute(f"PRAGMA user_version={_FORMAT}")
        elif (application, version) != (_APPLICATION_ID, _FORMAT):
            raise self._fail(f"{self.path} is not a Raft log of this version (found format {version})")
        # What a killed process wrote and did not sync is here, and would count as durable: this commit's fsync is
        # for it, too.
        self._set("opened", secrets.token_bytes(8))
        self._execute("COMMIT")
        if durable:
            _sync_folder(self.path.parent)
        meta = dict(self._execute("SELECT key, value FROM meta"))
        self._meta: dict[str, bytes] = meta
        self.first_index = int(meta["first_index"])
        self._term = int(meta.get("term", b"0"))
        self._vote = meta["vote"].decode() if meta.get("vote") else None
        ((first, last),) = self._execute("SELECT (SELECT min(idx) FROM entry), (SELECT max(idx) FROM entry)")
        self.last_index: int = self.first_index - 1 if last is None else last
        if last is not None and first != self.first_index:
            raise self._fail(f"the Raft log {self.path} begins at entry {first} instead of {self.first_index}")
        self.durable_index = self.last_index
        self._tail_first = self.last_index + 1
        # The first entry is the same on every member, whatever comes after it.
        self._commit = min(self.first_index, self.last_index)
        if last is not None:
            self._remember(self.entry(last))
        self._read_members()

    def _read_members(self) -> None:
        rows = self._execute("SELECT idx, members FROM members ORDER BY idx")
        try:
            self._configurations = [Members.decode(index, data) for index, data in rows]
        except ValueError as error:
            raise self._fail(f"the Raft log {self.path} is damaged: {error}") from error

    @property
    def members(self) -> Members:
        """The configuration that is in force: the newest one."""
        return self._configurations[-1] if self._configurations else Members.none()

    def members_at(self, index: int) -> Members:
        """The configuration that was in force when the entry at ``index`` was the newest one."""
        for members in reversed(self._configurations):
            if members.index <= index:
                return members
        return Members.none()

    def found(self, members: Members) -> None:
        """The configuration that is in force at the beginning, which no entry tells. Durable after the next sync."""
        self._begin()
        self._put_members(members)

    def forget_members(self) -> None:
        """Know of no configuration until an entry tells one. Durable after the next sync."""
        self._begin()
        self._write("DELETE FROM members", ())
        self._configurations = []

    def _put_members(self, members: Members) -> None:
        self._write("INSERT OR REPLACE INTO members VALUES (?, ?)", (members.index, members.encode()))
        self._configurations = [known for known in self._configurations if known.index < members.index]
        self._configurations.append(members)

    @property
    def member_id(self) -> bytes:
        """16 random bytes made with the file: a member that comes back without its log is a stranger."""
        return self._meta["member_id"]

    def get_meta(self, key: str) -> bytes | None:
        """A value stored beside the log, such as the cluster's id."""
        return self._meta.get(key)

    def set_meta(self, key: str, value: bytes) -> None:
        """Store a value beside the log, durable after the next :meth:`sync`."""
        self._begin()
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        self._meta[key] = value

    # Entries

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Store an entry; one that is already there is left alone, and a conflict replaces it and all after it.

        Only a real conflict truncates (Raft paper section 5.3; audit R2), and never at or below the commit index.
        """
        self._begin()
        if idx <= self.last_index:
            if idx < self.first_index:
                return
            held = self.entry(idx)
            if held[2] == term:
                # Of the first entry a snapshot keeps place and term alone.
                if held[0] != command and idx > self.first_index:
                    raise self._fail(f"two different entries {idx} of term {term}: the group has forked")
                return
            if idx <= self._commit:
                raise self._fail(
                    f"a leader wants to replace entry {idx} of term {held[2]} by one of term {term}, but all up to "
                    f"{self._commit} are committed: the group has forked"
                )
            self._truncate(idx)
        elif idx != self.last_index + 1:
            raise self._fail(f"entry {idx} cannot follow entry {self.last_index}")
        self._write("INSERT INTO entry VALUES (?, ?, ?, ?)", (idx, term, _checksum(command, idx, term), command))
        self.last_index = idx
        self._remember((command, idx, term))
        if command[:1] == CONFIGURATION:
            try:
                self._put_members(Members.decode(idx, command[1:]))
            except ValueError as error:
                raise self._fail(f"a leader sent what cannot be: {error}") from error

    def sync(self) -> None:
        """Make all that was written durable: one COMMIT, one fsync. A failure is final.

        SQLite cannot say what a failed fsync left on the disk, so it is not tried again.
        """
        self._check()
        if not self.dirty:
            return
        began = time.monotonic()
        self._write("COMMIT", ())
        self.dirty = False
        self.durable_index = self.last_index
        self.synced(time.monotonic() - began)

    def entry(self, index: int) -> Entry:
        """The entry at ``index``; IndexError when the log does not hold it."""
        found = self._tail.get(index)
        if found is not None:
            return found
        if not self.first_index <= index <= self.last_index:
            raise IndexError(index)
        if not (self._block and self._block[0][1] <= index <= self._block[-1][1]):
            self._block = self._read(index, _BLOCK_ENTRIES, _BLOCK_BYTES)
        return self._block[index - self._block[0][1]]

    def term_at(self, index: int) -> int | None:
        """The term of the entry at ``index``, None when the log does not hold it."""
        if not self.first_index <= index <= self.last_index:
            return None
        return self.entry(index)[2]

    def batch(self, start: int, max_bytes: int, max_entries: int) -> list[Entry]:
        """The entries from ``start`` on, at least one if there is one, up to the limits."""
        if start < self._tail_first:
            return self._read(start, max_entries, max_bytes)
        result: list[Entry] = []
        size = 0
        for index in range(start, min(self.last_index + 1, start + max_entries)):
            found = self._tail[index]
            size += len(found[0])
            if result and size > max_bytes:
                break
            result.append(found)
        return result

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> LogSlice: ...
    def __getitem__(self, item: int | slice) -> Entry | LogSlice:
        """By position from the log's start, as pysyncobj looks at it; a slice is a view."""
        indexes = range(self.first_index, self.last_index + 1)
        if isinstance(item, slice):
            return LogSlice(self, indexes[item])
        return self.entry(indexes[item])

    def __len__(self) -> int:
        return self.last_index - self.first_index + 1

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803, RUF100 - pysyncobj's names
        """Nothing: pysyncobj asks for it on every overlap, conflict or not (audit R2); :meth:`add` decides."""

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803, RUF100
        """Never: pysyncobj does not know what the state machine has on its disk; :meth:`compact` is told."""
        raise NotImplementedError("the log is compacted with compact()")

    def clear(self) -> None:
        """Never: an acknowledged entry may be lost with it (audit R4, R6)."""
        raise NotImplementedError("the log is never cleared")

    # Compaction

    def compact(self, index: int) -> None:
        """Let the log begin at ``index``, whose entry stays as the one before all others; a part of the way.

        Bounded work: to be called again until ``first_index`` is there. The caller has the state after ``index`` on
        its disk, whatever happens to the machine (Raft paper section 7). Durable after the next :meth:`sync`.
        """
        if index <= self.first_index:
            return
        if index > self._commit:
            raise self._fail(f"the log was to be cut at {index}, but only {self._commit} is known to be committed")
        rows = self._query(
            "SELECT idx, length(command) FROM entry WHERE idx < ? ORDER BY idx LIMIT ?", (index, _CUT_ENTRIES)
        )
        size, first = 0, self.first_index
        for found, length in rows:
            if size > _CUT_BYTES:
                break
            size, first = size + length, found + 1
        self._begin()
        self._write("DELETE FROM entry WHERE idx < ?", (first,))
        self._begin_at(first)
        base = self.members_at(first).index
        self._write("DELETE FROM members WHERE idx < ?", (base,))
        self._configurations = [known for known in self._configurations if known.index >= base]
        for gone in range(self._tail_first, min(first, self.last_index)):
            self._tail_size -= len(self._tail.pop(gone)[0])
            self._tail_first = gone + 1

    def restart(self, index: int, term: int, members: Members) -> None:
        """Hold nothing but the place where a snapshot ends, and the ``members`` there: all entries go, also those
        after it.

        Right only where the log lacks the entry ``index`` of ``term``: then what it holds after it is of another
        history (Raft paper figure 13). Durable after the next :meth:`sync`.
        """
        self._begin()
        self._write("DELETE FROM entry", ())
        command = b"\x01"
        self._write("INSERT INTO entry VALUES (?, ?, ?, ?)", (index, term, _checksum(command, index, term), command))
        self._begin_at(index)
        self._write("DELETE FROM members", ())
        self._configurations = []
        if members.index:
            self._put_members(members)
        self._tail, self._tail_size, self._block = {}, 0, []
        self.last_index = index
        self.durable_index = index - 1
        self._commit = max(self._commit, index)
        self._remember((command, index, term))

    def _begin_at(self, index: int) -> None:
        self.set_meta("first_index", b"%d" % index)
        self.first_index = index

    @property
    def used_bytes(self) -> int:
        """What the entries take up in the file; the file itself does not shrink, but is used again."""
        (pages,), (free,), (size,) = (
            self._query(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def index_beyond(self, size: int) -> int:
        """The first index such that the entries before it have ``size`` bytes; or a lower one, to bound the work."""
        last = self.first_index
        for index, length in self._query(
            "SELECT idx, length(command) FROM entry ORDER BY idx LIMIT ?", (_LOOK_ENTRIES,)
        ):
            last = index
            if size <= 0:
                break
            size -= length + _ROW_BYTES
        return last

    # Term, vote, commit index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803, RUF100
        """Store the term and the vote in it, durable after the next :meth:`sync`."""
        self.set_meta("term", b"%d" % term)
        self.set_meta("vote", (votedForNodeId or "").encode())
        self._term, self._vote = term, votedForNodeId

    def getCurrentTerm(self) -> int:  # noqa: N802, RUF100
        """The newest term this member has seen."""
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802, RUF100
        """Whom this member voted for in its term."""
        return self._vote

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803, RUF100
        """Remember up to where entries are committed. Not stored: the state machine knows a lower bound of it."""
        self._commit = max(self._commit, raftCommitIndex)

    def getRaftCommitIndex(self) -> int:  # noqa: N802, RUF100
        """Up to where entries are known to be committed, never above what is on the disk (audit R11)."""
        return min(self._commit, self.durable_index)

    # Life cycle

    def close(self) -> None:
        """Close the file; what was not synced is dropped, as in a crash. Idempotent."""
        connection, self._connection = getattr(self, "_connection", None), None
        if connection is None:
            return
        if self.fault is None:
            self.fault = "the Raft log is closed"
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK").fetchall()
        except apsw.Error:
            pass  # The journal or WAL undoes it at the next open.
        try:
            connection.close()
        except apsw.Error:
            connection.close(True)

    def _destroy(self) -> None:
        self.close()

    # Internals

    def _check(self) -> apsw.Connection:
        if self.fault is not None:
            raise LogFault(self.fault)
        assert self._connection is not None
        return self._connection

    def _fail(self, reason: str) -> LogFault:
        self.fault = reason
        return LogFault(reason)

    def _execute(self, sql: str, bindings: tuple[int | bytes | str, ...] = ()) -> list[tuple]:  # type: ignore[type-arg]
        return self._check().execute(sql, bindings).fetchall()

    def _query(self, sql: str, bindings: tuple[int, ...] = ()) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._execute(sql, bindings)
        except apsw.Error as error:
            raise self._fail(f"the Raft log {self.path} cannot be read: {error}") from error

    def _begin(self) -> None:
        if not self.dirty:
            self._write("BEGIN IMMEDIATE", ())
            self.dirty = True

    def _write(self, sql: str, bindings: tuple[int | bytes | str, ...]) -> None:
        try:
            self._execute(sql, bindings)
        except apsw.FullError as error:
            raise self._fail(f"the disk of the Raft log {self.path} is full: {error}") from error
        except apsw.Error as error:
            raise self._fail(f"the Raft log {self.path} cannot be written: {error}") from error

    def _set(self, key: str, value: bytes) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _truncate(self, index: int) -> None:
        self._write("DELETE FROM entry WHERE idx >= ?", (index,))
        if self._configurations and self._configurations[-1].index >= index:
            self._write("DELETE FROM members WHERE idx >= ?", (index,))
            self._configurations = [known for known in self._configurations if known.index < index]
        for gone in range(max(index, self._tail_first), self.last_index + 1):
            self._tail_size -= len(self._tail.pop(gone)[0])
        self.last_index = index - 1
        self.durable_index = min(self.durable_index, index - 1)
        self._tail_first = min(self._tail_first, index)
        self._block = []

    def _remember(self, entry: Entry) -> None:
        if not self._tail:
            self._tail_first = entry[1]
        self._tail[entry[1]] = entry
        self._tail_size += len(entry[0])
        while (self._tail_size > self._tail_bytes or len(self._tail) > self._tail_entries) and len(self._tail) > 1:
            self._tail_size -= len(self._tail.pop(self._tail_first)[0])
            self._tail_first += 1

    def _read(self, start: int, max_entries: int, max_bytes: int) -> list[Entry]:
        result: list[Entry] = []
        size = 0
        try:
            for index, term, crc, command in self._check().execute(
                "SELECT idx, term, crc, command FROM entry WHERE idx >= ? ORDER BY idx LIMIT ?", (start, max_entries)
            ):
                size += len(command)
                if result and size > max_bytes:
                    break
                if index != start + len(result) or _checksum(command, index, term) != crc:
                    raise self._fail(f"entry {start + len(result)} of the Raft log {self.path} is damaged")
                result.append((command, index, term))
        except apsw.Error as error:
            raise self._fail(f"the Raft log {self.path} cannot be read: {error}") from error
        if not result and start <= self.last_index:
            raise self._fail(f"entry {start} of the Raft log {self.path} is missing")
        return result


def _create(path: Path, mode: int) -> None:
    """Create an empty file with exactly ``mode``; SQLite gives its WAL the same."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
