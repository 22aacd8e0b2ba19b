"""Clients: autocommit writes, interactive transactions and reads through the real DB-API, and what they were told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django_raftsqlite.dbapi.connection import Connection
from django_raftsqlite.dbapi.freshness import LOCAL, Freshness, Seen
from django_raftsqlite.exceptions import (
    CommitOutcomeUnknown,
    DatabaseError,
    Error,
    HostLost,
    IntegrityError,
    LeaseTimeout,
    OperationalError,
    TransactionConflict,
    Unavailable,
)

from .guests import Share
from .history import DONE, FAILED, NOTHING, TOKENS, UNKNOWN, Counter
from .machine import Machine
from .world import Process, Violation

if TYPE_CHECKING:
    from .simulation import Simulation

SCHEMA = (
    "CREATE TABLE counter (k INTEGER PRIMARY KEY, n INTEGER NOT NULL)",
    "CREATE TABLE done (op INTEGER NOT NULL, k INTEGER NOT NULL, n INTEGER NOT NULL, at TEXT, r, filler TEXT)",
    "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0))",
    "CREATE TABLE only (name TEXT UNIQUE)",
    # Which only another program, and a damaged disk, ever change.
    "CREATE TABLE spare (id INTEGER PRIMARY KEY, text TEXT)",
)
ACCOUNTS, MONEY = 4, 100
SPARE = "what nobody writes to"
CLOCKS_DIFFER = 1.08
"""By how much two processes' seconds differ at most; see Process."""


class Client:
    """One thread of a process, with one connection to its machine's node."""

    def __init__(self, simulation: Simulation, machine: Machine, process: Process, share: Share, number: int) -> None:
        self.simulation = simulation
        self.machine = machine
        self.process = process
        self.name = f"{process.name}/{number}"
        self.random = simulation.chance(f"client {self.name}")
        self._demanded = LOCAL
        self._share = share
        self._local_floor: dict[int, Counter] = {}

    def run(self) -> None:
        """Until the workload ends."""
        while True:
            try:
                connection = Connection(
                    self._share, timeout=self.simulation.scenario.timeout, reads=lambda: self._demanded
                )
                break
            except Unavailable:
                if self.simulation.winding_down:
                    return
        try:
            self._work(connection)
            connection.close()
        except BaseException:
            leave_to_the_dead(connection)
            raise

    def _work(self, connection: Connection) -> None:
        actions: list[tuple[int, Callable[[Connection], None]]] = [
            (30, self._autocommit),
            (30, self._transaction),
            (10, self._transfer),
            (20, self._read),
            (20, self._leader_read),
            (10, self._bounded_read),
            (10, self._session_read),
            (5, self._duplicate),
            (3, self._large),
            (1, self._schema),
        ]
        pace = self.random.choice([0.01, 0.03, 0.1])
        while not self.simulation.winding_down:
            (action,) = self.random.choices([a for _, a in actions], [w for w, _ in actions])
            self.simulation.world.sleep(self.random.expovariate(1 / pace))
            if self.simulation.winding_down:
                break
            self.simulation.began(self)
            action(connection)
            self.simulation.finished(self)

    def _note(self, text: str) -> None:
        self.simulation.world.note(f"{self.name}: {text}")

    def _attempt(self, operation: int, what: str, act: Callable[[], Any]) -> Any:
        """Do it, and remember how it ended."""
        history = self.simulation.history
        self._note(f"{operation} {what}")
        try:
            value = act()
        except CommitOutcomeUnknown as error:
            how, why = UNKNOWN, str(error)
        except OperationalError as error:
            _expected(error)
            how, why = FAILED, f"{type(error).__name__} {error}"
            history.conflicts += isinstance(error, TransactionConflict)
        else:
            history.end(operation, DONE)
            self._note(f"{operation} done {value}")
            return value
        history.end(operation, how)
        self._note(f"{operation} {how}")
        self.simulation.world.remark(why)
        return None

    def _learn(self, operation: int, key: int, value: int) -> None:
        self.simulation.history.learn(key, (self.simulation.restores.era_of(operation), value))

    def _key(self) -> int:
        return self.random.randrange(self.simulation.scenario.keys)

    def _filler(self) -> str:
        return "x" * self.random.randrange(self.simulation.scenario.payload)

    # What they do

    def _autocommit(self, connection: Connection) -> None:
        """One statement that reads, counts and writes."""
        key = self._key()
        operation = self.simulation.history.begin(key)

        def act() -> int:
            cursor = connection.cursor()
            cursor.execute(
                "INSERT INTO done SELECT ?, k, n, CURRENT_TIMESTAMP, random(), ? FROM counter WHERE k = ? "
                "RETURNING n",
                (operation, self._filler(), key),
            )
            ((value,),) = cursor.fetchall()
            return int(value)

        value = self._attempt(operation, f"autocommit on {key}", act)
        if value is not None:
            self._learn(operation, key, value + 1)

    def _transaction(self, connection: Connection) -> None:
        """Read, think, write."""
        key = self._key()
        operation = self.simulation.history.begin(key)
        chance = self.random

        def act() -> int:
            cursor = connection.cursor()
            cursor.execute(chance.choice(["BEGIN", "BEGIN IMMEDIATE"]))
            try:
                ((value,),) = cursor.execute("SELECT n FROM counter WHERE k = ?", (key,)).fetchall()
                if chance.random() < 0.3:
                    self.simulation.world.sleep(chance.expovariate(1 / 0.02))
                if chance.random() < 0.3:
                    cursor.execute("SAVEPOINT s")
                    cursor.execute("INSERT INTO done VALUES (-1, ?, -1, '', 0, '')", (key,))
                    cursor.execute("ROLLBACK TO s")
                    cursor.execute("RELEASE s")
                if chance.random() < 0.05:
                    self.simulation.world.sleep(chance.uniform(0.2, 1.5))
                cursor.execute(
                    "INSERT INTO done VALUES (?, ?, ?, CURRENT_TIMESTAMP, random(), ?)",
                    (operation, key, value, self._filler()),
                )
                connection.commit()
            except Error:
                connection.rollback()
                raise
            return int(value)

        value = self._attempt(operation, f"transaction on {key}", act)
        if value is not None:
            self._learn(operation, key, value + 1)

    def _transfer(self, connection: Connection) -> None:
        chance = self.random
        source, target = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randrange(1, 60)

        def act() -> None:
            cursor = connection.cursor()
            cursor.execute("BEGIN")
            try:
                balances = dict(cursor.execute("SELECT id, balance FROM account").fetchall())
                self._check_money(balances)
                cursor.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, source))
                cursor.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, target))
                connection.commit()
            except Error as error:
                connection.rollback()
                if not isinstance(error, IntegrityError):
                    raise

        self._unless_unavailable("transfer", act)

    def _unless_unavailable(self, what: str, act: Callable[[], None]) -> bool:
        self._note(what)
        try:
            act()
        except OperationalError as error:
            _expected(error)
            self._note(f"{what}: {type(error).__name__}")
            return False
        self._note(f"{what}: done")
        return True

    def _check_money(self, balances: dict[int, int]) -> None:
        if sum(balances.values()) != ACCOUNTS * MONEY:
            raise Violation(f"{self.name} sees {balances}: money was lost or made")

    def _read(self, connection: Connection) -> None:
        """A local read never goes back on its node."""
        counters: dict[int, Counter] = {}
        if not self._unless_unavailable("read", lambda: counters.update(self._counters(connection))):
            return
        for key, value in self._local_floor.items():
            if counters.get(key, NOTHING) < value:
                raise Violation(f"{self.name} has read {value} of {key}, and now {counters.get(key)}")
        self._local_floor = counters
        self.simulation.history.reads += 1

    def _leader_read(self, connection: Connection) -> None:
        """It sees all that anybody knew to be committed when it began."""
        history = self.simulation.history
        known = dict(history.known)
        self._demanding_read(connection, Freshness("leader"), known)

    def _bounded_read(self, connection: Connection) -> None:
        """It sees all that anybody knew to be committed so many seconds before it began."""
        limit = self.random.choice([0.05, 0.3, 1.0, 3.0])
        known = self.simulation.history.known_at(self.simulation.world.now - limit * CLOCKS_DIFFER)
        self._demanding_read(connection, Freshness("bounded", limit), known)

    def _session_read(self, connection: Connection) -> None:
        """It sees all that somebody has read on whatever machine, who says so."""
        tokens = self.simulation.history.tokens
        if not tokens:
            self._demanding_read(connection, Freshness("session"), {})
            return
        lineage, version, counters = self.random.choice(tokens)
        seen = Seen(lineage, version)
        read = self._demanding_read(connection, Freshness("session", seen=seen), counters)
        if read and not seen.reached and self.simulation.history.tokens[-1][0] == lineage:
            raise Violation(f"{self.name}: the group has lost version {version}, which was read")

    def _demanding_read(self, connection: Connection, demanded: Freshness, known: dict[int, Counter]) -> bool:
        found: dict[int, Counter] = {}
        states: list[tuple[bytes, int]] = []

        def act() -> None:
            cursor = connection.cursor()
            cursor.execute("BEGIN")
            try:
                states.extend(cursor.execute("SELECT lineage, version FROM _raftsqlite_state").fetchall())
                found.update(self._counters(connection))
            finally:
                connection.rollback()

        self._demanded = demanded
        try:
            if not self._unless_unavailable(f"{demanded.level} read", act):
                return False
        finally:
            self._demanded = LOCAL
        for key, value in known.items():
            if found.get(key, NOTHING) < value:
                raise Violation(f"{self.name}: {demanded} gives {found.get(key)} for {key}, {value} was committed")
        history = self.simulation.history
        for key, value in found.items():
            history.learn(key, value)
        history.tokens = [*history.tokens[1 - TOKENS :], (*states[0], found)]
        history.demanding_reads += 1
        return True

    def _counters(self, connection: Connection) -> dict[int, Counter]:
        if not self.simulation.restores.watched:
            rows = connection.cursor().execute("SELECT k, n FROM counter").fetchall()
            return {key: (0, value) for key, value in rows}
        rows = connection.cursor().execute("SELECT k, n, lineage FROM counter, _raftsqlite_state").fetchall()
        return {key: (self.simulation.restores.era(lineage), value) for key, value, lineage in rows}

    def _duplicate(self, connection: Connection) -> None:
        """An error of SQL is the same for its author wherever it is applied."""

        def act() -> None:
            try:
                connection.cursor().execute("INSERT INTO only VALUES ('one')")
            except IntegrityError:
                pass
            else:
                raise Violation(f"{self.name} inserted what is unique, and there")

        self._unless_unavailable("duplicate", act)

    def _large(self, connection: Connection) -> None:
        """A transaction that goes through the log in parts, where parts are small."""
        key = self._key()
        operation = self.simulation.history.begin(key)

        def act() -> int:
            cursor = connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                ((value,),) = cursor.execute("SELECT n FROM counter WHERE k = ?", (key,)).fetchall()
                for _ in range(3):
                    cursor.execute("INSERT INTO done VALUES (-2, ?, -1, '', 0, ?)", (key, "y" * 900))
                cursor.execute("DELETE FROM done WHERE op = -2")
                cursor.execute("INSERT INTO done VALUES (?, ?, ?, '', 0, '')", (operation, key, value))
                connection.commit()
            except Error:
                connection.rollback()
                raise
            return int(value)

        value = self._attempt(operation, f"large on {key}", act)
        if value is not None:
            self._learn(operation, key, value + 1)

    def _schema(self, connection: Connection) -> None:
        name = f"i{self.random.randrange(4)}"
        sql = self.random.choice([f"CREATE INDEX IF NOT EXISTS {name} ON done (k)", f"DROP INDEX IF EXISTS {name}"])
        self._unless_unavailable(sql, lambda: connection.cursor().execute(sql))


def _expected(error: OperationalError) -> None:
    """Raise what no fault explains. After a power failure a node may begin at an old state, without the tables."""
    expected = (Unavailable, HostLost, LeaseTimeout, TransactionConflict, CommitOutcomeUnknown)
    if not isinstance(error, expected) and "no such table" not in str(error):
        raise error


def leave_to_the_dead(connection: Connection) -> None:
    """Nobody closes what a killed process had open."""
    connection.unusable = connection.unusable or Error("its process is dead")


def set_up(connection: Connection, keys: int) -> None:
    """Make the tables; again and again, until it is sure that they are there."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        for sql in SCHEMA:
            cursor.execute(sql)
        # The counter counts what is done, whoever does it.
        cursor.execute(
            "CREATE TRIGGER counting AFTER INSERT ON done WHEN new.op >= 0 BEGIN "
            "UPDATE counter SET n = n + 1 WHERE k = new.k; END"
        )
        cursor.executemany("INSERT INTO counter VALUES (?, 0)", [(key,) for key in range(keys)])
        cursor.executemany("INSERT INTO account VALUES (?, ?)", [(number, MONEY) for number in range(ACCOUNTS)])
        cursor.execute("INSERT INTO only VALUES ('one')")
        cursor.execute("INSERT INTO spare VALUES (1, ?)", (SPARE,))
        connection.commit()
    except DatabaseError:
        connection.rollback()
        raise
