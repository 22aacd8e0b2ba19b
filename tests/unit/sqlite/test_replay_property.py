"""Random programs, replayed in other batches and with restarts: same file, same digest, same outcomes.

The author's side is played too: an interactive transaction runs on scratch first, with savepoints, and what it kept
is replicated with the answers it saw.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, event, given, note, seed, settings
from hypothesis import strategies as st

from django_raftsqlite.sqlite.entry import Item, Outcome, Statement, Status, result_digest
from django_raftsqlite.sqlite.errors import StatementError
from django_raftsqlite.sqlite.scratch import Scratch
from django_raftsqlite.sqlite.text import traits
from tests.support.dumps import dump

from .replay import CLOCK, REGISTRARS, Replica, open_origin

SCHEMA = (
    "CREATE TABLE p(id INTEGER PRIMARY KEY, name TEXT UNIQUE, at DEFAULT CURRENT_TIMESTAMP, r DEFAULT (random()))",
    "CREATE TABLE c(id INTEGER PRIMARY KEY AUTOINCREMENT, p REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE,"
    " q REFERENCES p(id) DEFERRABLE INITIALLY DEFERRED, n CHECK (n < 90))",
    "CREATE TABLE n(x, y)",
    "CREATE TABLE log(what, at, r)",
    "CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID",
    "CREATE TRIGGER p_insert AFTER INSERT ON p BEGIN"
    " INSERT INTO log VALUES ('p' || new.id, datetime('now'), random()); END",
    "CREATE TRIGGER c_poison BEFORE INSERT ON c WHEN new.n BETWEEN 80 AND 84 BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    "CREATE TRIGGER c_abort BEFORE INSERT ON c WHEN new.n BETWEEN 85 AND 87 BEGIN SELECT RAISE(ABORT, 'no'); END",
    "CREATE TRIGGER c_fail BEFORE INSERT ON c WHEN new.n = 88 BEGIN SELECT RAISE(FAIL, 'no'); END",
    "CREATE VIRTUAL TABLE ft USING fts5(body)",
)

CONFLICTS = ("", "OR ABORT", "OR FAIL", "OR IGNORE", "OR REPLACE", "OR ROLLBACK")
small = st.integers(0, 5)
number = st.integers(0, 95)
word = st.sampled_from(["a", "b", "c", "d", "e"])
conflict = st.sampled_from(CONFLICTS)


def statements() -> st.SearchStrategy[tuple[str, list[Any]]]:
    """One write or read with its parameters."""

    def made(template: str, *values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, list[Any]]]:
        return st.tuples(conflict, *values).map(lambda drawn: (template.replace("{or}", drawn[0]), list(drawn[1:])))

    return st.one_of(
        made("INSERT {or} INTO p(name) VALUES (?)", word),
        made("INSERT {or} INTO p(id, name) VALUES (?, ?), (?, ?) RETURNING *", small, word, small, word),
        made("INSERT {or} INTO p(name) VALUES (?) ON CONFLICT(name) DO UPDATE SET at = datetime('now')", word),
        made("INSERT {or} INTO c(p, q, n) VALUES (?, ?, ?)", small, small, number),
        made("INSERT {or} INTO c(p, n) VALUES (?, ?), (?, ?) RETURNING id", small, number, small, number),
        made("INSERT {or} INTO c(q) VALUES (?)", small),
        made("INSERT {or} INTO n SELECT random(), name FROM p ORDER BY random() LIMIT ?", small),
        made("INSERT {or} INTO n VALUES (hex(randomblob(?)), julianday('now')) RETURNING rowid, *", small),
        made("INSERT {or} INTO n VALUES (changes() || ' ' || total_changes(), last_insert_rowid())"),
        made("INSERT {or} INTO n VALUES (RAND(), strftime('%f', 'now', ?))", st.sampled_from(["-1 day", "+3 hours"])),
        made("INSERT {or} INTO w VALUES (?, RAND())", word),
        made("INSERT {or} INTO ft(body) VALUES (?)", st.sampled_from(["red fish", "blue fish", "one two"])),
        made("DELETE FROM ft WHERE ft MATCH 'fish' AND rowid % 2 = ?", small),
        made("UPDATE {or} p SET name = name || ? WHERE id = ? RETURNING id, name", word, small),
        made("UPDATE {or} p SET id = ? WHERE id = ?", small, small),
        made("UPDATE {or} w SET k = ?, v = random()", word),
        made("UPDATE n SET y = ? WHERE rowid IN (SELECT rowid FROM n ORDER BY random() LIMIT ?)", word, small),
        made("DELETE FROM p WHERE id = ?", small),
        made("DELETE FROM c WHERE id IN (SELECT id FROM c ORDER BY RAND() LIMIT ?) RETURNING *", small),
        made("DELETE FROM n"),
        made("WITH x(v) AS (VALUES (?), (?)) INSERT {or} INTO p(name) SELECT v FROM x", word, word),
        made("SELECT count(*), max(name), datetime('now'), random() FROM p"),
        made("CREATE TABLE IF NOT EXISTS extra(a UNIQUE, b DEFAULT (hex(randomblob(4))))"),
        made("CREATE TABLE extra(a UNIQUE, b DEFAULT (hex(randomblob(4))))"),
        made("INSERT {or} INTO extra(a) VALUES (?)", small),
        made("ALTER TABLE extra ADD COLUMN c DEFAULT 7"),
        made("DROP TABLE extra"),
        made("CREATE INDEX IF NOT EXISTS n_x ON n(x)"),
        made("ANALYZE"),
        made("PRAGMA user_version = 5"),
        made("INSERT INTO nowhere VALUES (?)", small),
        made("UPDATE n SET y = ?1 WHERE x REGEXP '('", word),
    )


@dataclass
class Autocommit:
    spoken: tuple[str, list[Any]]


@dataclass
class Interactive:
    """Statements between BEGIN and COMMIT; strings are savepoint commands. ``deferred``: defer_foreign_keys is on."""

    script: list[tuple[str, list[Any]] | str]
    deferred: bool = False


@dataclass
class Solo:
    sql: tuple[str, ...]
    pragmas: dict[str, int] = field(default_factory=dict)


SAVEPOINTS = st.sampled_from(
    ["SAVEPOINT s", "SAVEPOINT t", "ROLLBACK TO s", "ROLLBACK TO t", "RELEASE s", "RELEASE t"]
)
STEP = st.one_of(
    st.builds(Autocommit, statements()),
    st.builds(Autocommit, statements()),
    st.builds(
        Interactive,
        st.lists(st.one_of(statements(), statements(), SAVEPOINTS), min_size=1, max_size=7),
        st.booleans(),
    ),
    st.builds(
        Solo,
        st.sampled_from(
            [
                ("VACUUM",),
                ("CREATE TABLE pp AS SELECT * FROM p", "DROP TABLE pp"),
                ("DELETE FROM p WHERE id % 2", "INSERT INTO c(p) VALUES (77)"),
            ]
        ),
    ),
)


class Author:
    """Plays the driver: decides what is replicated, and applies it on a replica of its own as it goes."""

    def __init__(self, folder: Path, randomness: Any) -> None:
        self.replica = Replica(folder / "author")
        self.scratch = Scratch(self.replica.path, REGISTRARS, durable=False)
        self.randomness = randomness
        self.moment = CLOCK
        self.items: list[tuple[Item, bool]] = []
        self.outcomes: list[Outcome] = []

    def send(self, item: Item, *, solo: bool = False) -> None:
        self.items.append((item, solo))
        self.outcomes += self.replica.apply(item, solo=solo)

    def statement(self, spoken: tuple[str, list[Any]]) -> Statement:
        self.moment += 1234
        return Statement(spoken[0], spoken[1], self.moment, self.randomness.getrandbits(63))

    def play(self, step: Autocommit | Interactive | Solo) -> None:
        if isinstance(step, Autocommit):
            self.send(self.replica.next(self.statement(step.spoken), low_water=1))
        elif isinstance(step, Solo):
            spoken = [self.statement((sql, [])) for sql in step.sql]
            pragmas = {} if step.sql == ("VACUUM",) else {"foreign_keys": 0}
            self.send(self.replica.next(*spoken, low_water=1, pragmas=pragmas, solo=True), solo=True)
        else:
            self.interact(step)

    def interact(self, step: Interactive) -> None:
        """Run the script on scratch, keep the net writes with what was seen, and replicate them."""
        pragmas = {"defer_foreign_keys": 1} if step.deferred else {}
        base = self.scratch.begin(pragmas)
        writes: list[Statement] = []
        savepoints: list[tuple[str, int]] = []
        for spoken in step.script:
            if isinstance(spoken, str):
                verb, name = spoken.split()[0], spoken[-1]
                names = [known for known, _ in savepoints]
                if verb != "SAVEPOINT" and name not in names:
                    continue
                self.scratch.execute(self.statement((spoken, [])))
                if verb == "SAVEPOINT":
                    savepoints.append((name, len(writes)))
                else:
                    at = len(names) - 1 - names[::-1].index(name)
                    if verb == "ROLLBACK":
                        del writes[savepoints[at][1] :]
                        del savepoints[at + 1 :]
                    else:
                        del savepoints[at:]
                continue
            one = self.statement(spoken)
            before = self.changes()
            try:
                digest = result_digest(0, self.scratch.execute(one))
                kept = traits(one.sql).verb != "SELECT"
            except StatementError as error:
                if not self.scratch.in_transaction:
                    event("SQLite ended the transaction")
                    self.scratch.rollback()
                    return
                digest = result_digest(error.code, None)
                kept = self.changes() != before
            if kept:
                writes.append(one._replace(expect=digest))
        failing = self.scratch.deferred_violations() != 0
        self.scratch.rollback()
        if failing or not writes:
            return
        # Statements that look at what others changed may see less on replay, without what was undone; the outcome is
        # then that replay differs, and it must be so everywhere.
        self.send(self.replica.next(*writes, low_water=1, base=base, pragmas=pragmas))
        event(f"interactive: {self.outcomes[-1].status.name}")

    def changes(self) -> int:
        return self.scratch._connection.counters.total_changes()

    def close(self) -> None:
        self.scratch.close()
        self.replica.close()


def replay(path: Path, items: list[tuple[Item, bool]], data: st.DataObject) -> tuple[list[Outcome], bytes, str]:
    """Apply in random batches, closing and opening again, or going on from a copy as after kill -9, in between."""
    replica = Replica(path)
    outcomes: list[Outcome] = []
    try:
        position = 0
        while position < len(items):
            solo = items[position][1]
            longest = 1
            while not solo and position + longest < len(items) and not items[position + longest][1]:
                longest += 1
            size = 1 if solo else data.draw(st.integers(1, longest), label="batch")
            outcomes += replica.apply(*(item for item, _ in items[position : position + size]), solo=solo)
            position += size
            fate = data.draw(st.sampled_from(["go on", "go on", "restart", "kill"]), label="then")
            if fate == "restart":
                replica.restart()
            elif fate == "kill":
                copy = path.with_name(path.name + "k")
                for suffix in ("", "-wal"):
                    shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
                replica.close()
                path = copy
                replica = Replica(path)
        return outcomes, replica.machine.digest, dump(path)
    finally:
        replica.close()


@seed(20_260_101)
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(STEP, min_size=3, max_size=25), st.randoms(use_true_random=False), st.data())
def test_a_replay_depends_on_the_log_alone(steps: list[Any], randomness: Any, data: st.DataObject) -> None:
    """Whatever the batches and restarts, on every node; and as the author's own node had it, entry by entry."""
    with tempfile.TemporaryDirectory() as folder:
        author = Author(Path(folder), randomness)
        try:
            author.send(open_origin())
            for sql in SCHEMA:
                author.send(author.replica.next(sql, low_water=1))
            assert all(outcome.status is Status.DONE for outcome in author.outcomes)
            for step in steps:
                author.play(step)
            for outcome in author.outcomes[len(SCHEMA) :]:
                note(str(outcome))
            expected = (author.outcomes, author.replica.machine.digest, dump(author.replica.path))
        finally:
            author.close()
        for node in range(2):
            assert replay(Path(folder) / f"n{node}", author.items, data) == expected
