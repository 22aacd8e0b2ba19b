"""Scratch and apply take turns, and neither sees anything of the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest

from django_raftsqlite.node.api import Moved
from django_raftsqlite.node.lane import ScratchLane
from django_raftsqlite.node.turns import Turn
from django_raftsqlite.sqlite.entry import Base, Result
from django_raftsqlite.sqlite.errors import NodeFault
from django_raftsqlite.sqlite.scratch import Scratch
from tests.support.nodes import eventually, statement
from tests.unit.sqlite.replay import REGISTRARS, Replica, open_origin

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
DEADLINE = 20.0


class SlowScratch(Scratch):
    """Whose next beginning takes until it is interrupted, when ``slow`` is set; ``slowed`` says that it has begun."""

    slow = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, REGISTRARS, durable=False)
        self.slowed = threading.Event()

    def begin(self, state: Mapping[str, int]) -> Base:
        if self.slow:
            self.slow = False
            self.slowed.set()
            try:
                self._connection.execute(ENDLESS).fetchall()
            except apsw.InterruptError as error:
                raise NodeFault("interrupted", retry=True) from error
        return super().begin(state)


class Rig:
    """A state machine and a scratch lane on one file, and a second thread."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.replica = Replica(path)
        stack.callback(self.replica.close)
        self.replica.apply(open_origin())
        self.replica.done("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
        self.scratch = SlowScratch(path)
        self.lane = ScratchLane(self.scratch)
        stack.callback(self.lane.close)
        self._pool = stack.enter_context(ThreadPoolExecutor(1))

    def beside(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._pool.submit(call, *args)

    def enter(self, turn: Turn) -> Base:
        return self.lane.enter(turn, {}, lambda: DEADLINE)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(tmp_path / "db.sqlite3", stack)


def a_turn() -> Turn:
    return Turn("node 127.0.0.1:1, process 1", "UPDATE t SET a = 1")


def test_a_transaction_that_apply_interrupts_while_it_begins_begins_again(rig: Rig) -> None:
    rig.scratch.slow = True
    turn = a_turn()
    entered = rig.beside(rig.enter, turn)
    assert rig.scratch.slowed.wait(DEADLINE)
    with rig.lane.apply():
        rig.replica.done("INSERT INTO t(a) VALUES (1)")
    assert entered.result(DEADLINE) == rig.replica.machine.base
    (result,), _ = rig.lane.execute(turn, [statement("SELECT count(*) FROM t")])
    assert isinstance(result, Result)
    assert result.rows == [(1,)]


def test_an_interrupt_is_never_a_statements_result(rig: Rig) -> None:
    turn = a_turn()
    rig.enter(turn)
    running = rig.beside(rig.lane.execute, turn, [statement("INSERT INTO t(a) VALUES (1)"), statement(ENDLESS)])
    eventually(lambda: rig.scratch.interrupt() or running.done(), "the endless statement ends")
    with pytest.raises(Moved):
        running.result(DEADLINE)
    rig.enter(turn)
    (result,), _ = rig.lane.execute(turn, [statement("SELECT count(*) FROM t")])
    assert isinstance(result, Result)
    assert result.rows == [(0,)]
