"""An entry that this node has received and not applied: what the next transaction may lie on top of."""

from __future__ import annotations

from typing import NamedTuple

from ..sqlite.entry import Base, ItemKind, RequestId, decode_entry, decode_transaction
from ..sqlite.errors import MalformedEntry
from ..sqlite.text import DDL, traits

MOST_BYTES = 64 * 1024
"""Encoded: beyond it, to run a transaction again would take longer than to wait for it."""

MOST_AHEAD = 16
"""Transactions of an entry that are run here before it is applied; as MOST_BYTES."""


class Committing(NamedTuple):
    """A transaction whose COMMIT is on its way. ``alone``: nothing can be based on it before it is applied;
    ``foreign``: it is another node's."""

    request: RequestId
    payload: bytes
    alone: bool
    foreign: bool = False


class Ahead:
    """The entry at the log ``index`` from which on a lease is good, as the leader that granted it has it.

    It may be lost with that leader. Whoever works on top of it names it in his base, so that apply finds that out.
    """

    __slots__ = ("_entry", "_found", "index")

    def __init__(self, index: int, entry: bytes) -> None:
        self.index = index
        self._entry = entry
        self._found: tuple[Base, list[Committing] | None] | None = None

    def on(self, base: Base) -> list[Committing] | None:
        """Its transactions, if it is the next one after the state ``base``, and they are such that all of them will
        be done there; else None."""
        known = self._found
        if known is None or known[0] != base:
            known = self._found = base, self._on(base)
        return known[1]

    def _on(self, base: Base) -> list[Committing] | None:
        if len(self._entry) > MOST_BYTES:
            return None
        found: list[Committing] = []
        try:
            entry = decode_entry(self._entry)
            if len(entry.items) > MOST_AHEAD:
                return None
            for kind, payload in entry.items:
                transaction = decode_transaction(payload) if kind is ItemKind.TRANSACTION else None
                if transaction is None or transaction.solo or transaction.base != base:
                    return None
                if any(traits(statement.sql).verb in DDL for statement in transaction.statements):
                    return None
                found.append(Committing(transaction.request, payload, alone=False, foreign=True))
                base = Base(base.lineage, base.version + 1, transaction.request.to_bytes())
        except MalformedEntry:
            return None  # apply says what is wrong with it
        return found
