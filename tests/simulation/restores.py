"""Backups, and restores of them while everything else happens; and what the tables must hold after each entry."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from django_raftsqlite.exceptions import (
    CommitOutcomeUnknown,
    HostLost,
    LeaseTimeout,
    NotSupportedError,
    Unavailable,
)
from django_raftsqlite.sqlite.copying import NoSpace, copy_database, layout_of
from django_raftsqlite.sqlite.restoring import prepare

from .guests import Share
from .history import DONE, FAILED, OPEN, UNKNOWN
from .world import Process, Violation

if TYPE_CHECKING:
    from .machine import Machine
    from .simulation import Simulation

Rows = tuple[tuple[int, int, int], ...]
ROWS = "SELECT op, k, n FROM done WHERE op >= 0 ORDER BY rowid"
AT_ONCE = 2
"""Restores under way."""
FIRST_LINEAGE = bytes(16)


@dataclass
class Backup:
    """``copy`` is the state after the entry ``index``, ``prepared`` the same as it is sent; ``rows`` are in both."""

    index: int
    copy: Path
    prepared: Path
    rows: Rows


@dataclass
class Attempt:
    """A restore. ``lineage`` is known as soon as its author has drawn it."""

    backup: Backup
    lineage: bytes = b""
    how: str = OPEN


class Restores:
    """Knows of every operation at which entry it was executed, and what restores took away and brought back.

    Between two restores rows are only added, and none of an operation that was ever executed before; a restore
    leaves exactly the rows of its backup. An *era* is the number of restores before a state: 0 to begin with.
    ``placed`` has the era of each operation that was executed, ``rows`` are those of the newest state, ``contents``
    those after each entry.
    """

    def __init__(self, simulation: Simulation, random_bytes: random.Random) -> None:
        self._simulation = simulation
        self._random_bytes = random_bytes
        self._beginning: Attempt | None = None
        self._made = 0
        self._lineages = [FIRST_LINEAGE]
        self.watched = simulation.scenario.restores
        self.backups: list[Backup] = []
        self.attempts: list[Attempt] = []
        self.under_way: set[Process] = set()
        self.placed: dict[int, int] = {}
        self.rows: Rows = ()
        self.contents: dict[int, Rows] = {}

    @property
    def count(self) -> int:
        """How many were applied."""
        return len(self._lineages) - 1

    def urandom(self, count: int) -> bytes:
        """In place of os.urandom, for who restores: the first that it draws is its lineage."""
        drawn = self._random_bytes.randbytes(count)
        if self._beginning is not None:
            self._beginning.lineage, self._beginning = drawn, None
        return drawn

    # What clients ask

    def era(self, lineage: bytes) -> int:
        """Of a state that somebody has read."""
        if not self.watched:
            return 0
        if lineage not in self._lineages:
            raise Violation(f"somebody reads lineage {lineage.hex()}, which nobody has applied")
        return self._lineages.index(lineage)

    def era_of(self, operation: int) -> int:
        """In which an operation was executed that was acknowledged."""
        if not self.watched:
            return 0
        if operation not in self.placed:
            raise Violation(f"operation {operation} was acknowledged, and nobody has applied it")
        return self.placed[operation]

    # What is applied

    def applied(self, machine: Machine, state: Any, index: int) -> None:
        """A node is the first that has applied an entry."""
        lineage = state.base.lineage
        try:
            rows: Rows = tuple(state._connection.execute(ROWS).fetchall())
        except apsw.SQLError:
            return  # the tables are yet to be made
        if lineage != self._lineages[-1]:
            self._restored(lineage, rows, index)
        added = rows[len(self.rows) :]
        if rows[: len(self.rows)] != self.rows:
            raise Violation(f"entry {index} changed or removed rows of operations that were executed before")
        for operation, _, _ in added:
            if operation in self.placed:
                raise Violation(f"entry {index} executes operation {operation} again")
            self.placed[operation] = len(self._lineages) - 1
        self.rows = self.contents[index] = rows

    def _restored(self, lineage: bytes, rows: Rows, index: int) -> None:
        attempt = next((each for each in self.attempts if each.lineage == lineage), None)
        if attempt is None or lineage in self._lineages:
            raise Violation(f"entry {index} begins lineage {lineage.hex()}, which nobody asked for, or not again")
        if rows != attempt.backup.rows:
            raise Violation(f"entry {index} restores something else than was backed up at {attempt.backup.index}")
        self._lineages.append(lineage)
        self.rows = rows

    # What is done

    def back_up(self, machine: Machine) -> None:
        """Somebody copies the file of a node that serves; its content is prepared for a restore."""
        simulation, host = self._simulation, machine.host
        if host is None or host.suspect is not None or host._applied.index < simulation.made or machine.touched:
            return
        self._made += 1
        number = self._made
        author = self._author(machine, f"backup{number}")
        simulation.world.spawn(author, lambda: self._back_up(machine, author, number), "backup")

    def _back_up(self, machine: Machine, author: Process, number: int) -> None:
        copy = self._simulation.desk.folder / f"copy{number}"
        try:
            copied = copy_database(machine.disk.folder / "db.sqlite3", copy, 0o600, lambda: None)
        except (apsw.Error, OSError, NoSpace) as error:
            self._simulation.world.note(f"{author.name}: {type(error).__name__}")
            self._leave(machine, author)
            return
        with closing(apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            rows: Rows = tuple(connection.execute(ROWS).fetchall())  # type: ignore[arg-type]
            spoiled = machine.touched is not None or self._simulation.spoiled(connection)
            layout = layout_of(connection)
        if not spoiled:
            if rows != self.contents.get(copied.index, rows):
                raise Violation(f"the copy of {machine.address} has not the state of index {copied.index}")
            prepared = copy.with_name(f"prepared{number}")
            prepare(copy, prepared, layout, ())
            self.backups.append(Backup(copied.index, copy, prepared, rows))
            self._simulation.world.note(f"{author.name}: the state of {copied.index}")
        self._leave(machine, author)

    def restore(self, machine: Machine, choice: float) -> None:
        """Somebody has the content of a backup put in the place of the group's."""
        if not self.backups or len(self.under_way) >= AT_ONCE or machine.process is None:
            return
        attempt = Attempt(self.backups[int(choice * len(self.backups))])
        self.attempts.append(attempt)
        author = self._author(machine, f"restore{len(self.attempts)}")
        self.under_way.add(author)
        self._simulation.world.spawn(author, lambda: self._restore(machine, author, attempt), "restore")

    def _restore(self, machine: Machine, author: Process, attempt: Attempt) -> None:
        note = self._simulation.world.note
        note(f"{author.name}: restores the state of {attempt.backup.index}")
        share = Share(machine, author)
        self._beginning = attempt
        try:
            share.restore(attempt.backup.prepared, timeout=self._simulation.scenario.timeout)
            attempt.how = DONE
        except CommitOutcomeUnknown:
            attempt.how = UNKNOWN
        except (Unavailable, LeaseTimeout, HostLost, NotSupportedError) as error:
            attempt.how = FAILED
            self._simulation.world.remark(str(error))
        note(f"{author.name}: {attempt.how}")
        self._leave(machine, author)

    def _author(self, machine: Machine, name: str) -> Process:
        author = Process(self._simulation.world, f"{machine.address}.{name}")
        author.wall = machine.wall
        machine.guests.append(author)
        return author

    def _leave(self, machine: Machine, author: Process) -> None:
        self._simulation.world.soon(lambda: machine.kill_guest(author))

    # In the end

    def check(self, rows: list[tuple[int, int, int]]) -> None:
        """``rows`` are those of the group in the end. Raises Violation."""
        if not self.watched:
            return
        if tuple(rows) != self.rows:
            raise Violation("the tables are not what the entries led to")
        for attempt in self.attempts:
            applied = attempt.lineage in self._lineages
            if attempt.how == DONE and not applied:
                raise Violation("a restore was acknowledged, and never applied")
            if attempt.how == FAILED and applied:
                raise Violation("a restore was surely not executed, its author was told, and it was applied")
        for operation, (_, how) in enumerate(self._simulation.history.operations):
            if how == FAILED and operation in self.placed:
                raise Violation(f"operation {operation} failed, its client was told, and it was executed")
            if how == DONE and operation not in self.placed:
                raise Violation(f"operation {operation} was acknowledged and was never executed")

    @property
    def erased(self) -> set[int]:
        """The operations that were executed, and that a restore took away."""
        return self.placed.keys() - {operation for operation, _, _ in self.rows}
