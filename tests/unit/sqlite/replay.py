"""Writes log entries for tests, and applies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
from django.db.backends.sqlite3._functions import register as django_functions

from django_raftsqlite.sqlite.entry import (
    Base,
    Entry,
    Item,
    ItemKind,
    Outcome,
    RequestId,
    Result,
    Statement,
    Status,
    Transaction,
    encode_entry,
    encode_transaction,
)
from django_raftsqlite.sqlite.machine import StateMachine

ORIGIN = bytes(range(16))
CLOCK = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
REGISTRARS = (django_functions,)

Spoken = str | tuple[str, Any] | Statement


def statement(spoken: Spoken, *, clock: int = CLOCK, seed: int = 7) -> Statement:
    """A Statement from its text, or (text, parameters)."""
    if isinstance(spoken, Statement):
        return spoken
    sql, parameters = (spoken, None) if isinstance(spoken, str) else spoken
    return Statement(sql, parameters, clock, seed)


def open_origin(origin: bytes = ORIGIN) -> Item:
    return Item(ItemKind.OPEN_ORIGIN, origin)


def close_origin(origin: bytes = ORIGIN) -> Item:
    return Item(ItemKind.CLOSE_ORIGIN, origin)


def expire(idle_versions: int, idle_ms: int) -> Item:
    return Item(ItemKind.EXPIRE_ORIGINS, msgpack.packb([idle_versions, idle_ms]))


def use_protocol(version: int) -> Item:
    return Item(ItemKind.PROTOCOL, msgpack.packb([version]))


def transaction(
    sequence: int,
    *spoken: Spoken,
    origin: bytes = ORIGIN,
    low_water: int = 1,
    base: Base | None = None,
    pragmas: Mapping[str, int] | None = None,
    solo: bool = False,
) -> Item:
    """The item of a transaction with these statements."""
    return Item(
        ItemKind.TRANSACTION,
        encode_transaction(
            Transaction(
                RequestId(origin, sequence),
                low_water,
                tuple(statement(one) for one in spoken),
                base,
                pragmas or {},
                solo,
            )
        ),
    )


def encoded(*items: Item, time: int = CLOCK, solo: bool = False) -> bytes:
    return encode_entry(Entry(time, items, solo))


class Replica:
    """A state machine on a file, with a log of its own making: entries get the next index."""

    def __init__(
        self,
        path: Path,
        registrars: Sequence[Any] = REGISTRARS,
        *,
        durable: bool = False,
        speaks: int | None = None,
    ) -> None:
        self.path = path
        self.registrars = tuple(registrars)
        self.durable = durable
        self.machine = StateMachine(path, self.registrars, durable=durable, speaks=speaks)
        self.sequence = 0

    def apply(self, *items: Item, time: int = CLOCK, solo: bool = False) -> list[Outcome]:
        """Apply one entry; the outcomes of its transactions."""
        index = self.machine.applied_index + 1
        return [outcome for _, outcome in self.machine.apply(index, 1, encoded(*items, time=time, solo=solo))]

    def next(self, *spoken: Spoken, **options: Any) -> Item:
        """A transaction with the next sequence of ORIGIN, which forgets all before it."""
        self.sequence += 1
        options.setdefault("low_water", self.sequence)
        return transaction(self.sequence, *spoken, **options)

    def run(self, *spoken: Spoken, solo: bool = False, **options: Any) -> Outcome:
        """Apply an entry with one transaction."""
        (outcome,) = self.apply(self.next(*spoken, solo=solo, **options), solo=solo)
        return outcome

    def done(self, *spoken: Spoken, **options: Any) -> Result | None:
        """As :meth:`run`, for what must succeed."""
        outcome = self.run(*spoken, **options)
        assert outcome.status is Status.DONE, outcome
        return outcome.result

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The answer of a query to the file as it is committed."""
        return self.machine._connection.execute(sql).fetchall()

    def restart(self) -> None:
        """Close and open again."""
        self.machine.close()
        self.machine = StateMachine(self.path, self.registrars, durable=self.durable)

    def close(self) -> None:
        self.machine.close()
