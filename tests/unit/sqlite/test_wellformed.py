"""What no node could decode does not get into the log; what a driver makes does."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from django_raftsqlite.sqlite.entry import Base, ItemKind, RequestId, Statement, Transaction, encode_transaction
from django_raftsqlite.sqlite.parts import Part, Parted, encode_part, encode_parted
from django_raftsqlite.sqlite.wellformed import check_item
from tests.fuzz.fuzzing import damaged

REQUEST = RequestId(b"o" * 16, 7)
NAME = REQUEST.to_bytes()
TRANSACTION = Transaction(
    REQUEST,
    3,
    (
        Statement("INSERT INTO t VALUES (?, ?, ?, ?, ?)", (1, "a\ud800", b"b", None, 1.5), 1, 2, b"12345678"),
        Statement("DELETE FROM t WHERE x = :x", {"x": -(2**63)}, 3, 2**63 - 1),
        Statement("DELETE FROM t", None, 3, 4),
    ),
    Base(b"l" * 16, 6, b"r" * 24),
    {"foreign_keys": 0},
    solo=True,
)
PARTED = Parted(REQUEST, 1, 700_000, 2, b"h" * 32)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (ItemKind.TRANSACTION, encode_transaction(TRANSACTION)),
        (ItemKind.PART, encode_part(Part(REQUEST, 1, 8, 0, b"data"))),
        (ItemKind.PARTED_TRANSACTION, encode_parted(PARTED)),
    ],
)
def test_what_is_sent_is_well_formed_and_nothing_like_it_is(kind: ItemKind, payload: bytes) -> None:
    check_item(kind, payload, NAME, True)
    for name in (NAME[:-1], b"", NAME[:-1] + b"\0", None, NAME.decode("latin-1")):
        with pytest.raises(ValueError, match=r"\w"):
            check_item(kind, payload, name, True)
    for wrong in (payload[:-1], payload + b"\0", b"", b"\xc1", payload.decode("latin-1"), None):
        with pytest.raises(ValueError, match=r"\w"):
            check_item(kind, wrong, NAME, True)
    with pytest.raises(ValueError, match="solo"):
        check_item(kind, payload, NAME, None)


def test_only_a_leader_proposes_what_is_for_leaders() -> None:
    for kind in (
        ItemKind.EXPIRE_ORIGINS,
        ItemKind.EXPIRE_PARTS,
        ItemKind.PROTOCOL,
        ItemKind.LINEAGE,
        ItemKind.BEGIN_ARCHIVE,
    ):
        with pytest.raises(ValueError, match="for the leader alone"):
            check_item(kind, msgpack.packb([1]), NAME, False)
    for kind in (ItemKind.OPEN_ORIGIN, ItemKind.CLOSE_ORIGIN, ItemKind.VERIFY):
        check_item(kind, b"o" * 16, b"", None)
        with pytest.raises(ValueError, match="16 bytes"):
            check_item(kind, b"o" * 15, b"", None)


@pytest.mark.parametrize(
    "statement",
    [
        (7, None, 1, 2, None),
        ("x", 7, 1, 2, None),
        ("x", [[]], 1, 2, None),
        ("x", [2**63], 1, 2, None),
        ("x", {1: 2}, 1, 2, None),
        ("x", "text", 1, 2, None),
        ("x", None, "1", 2, None),
        ("x", None, 1, -1, None),
        ("x", None, 1, 2**63, None),
        ("x", None, 1, 2, "12345678"),
    ],
)
def test_a_statement_has_sql_and_values(statement: Any) -> None:
    payload = msgpack.packb((REQUEST.origin, 7, 3, None, {}, False, [statement]))
    with pytest.raises(ValueError, match=r"\w"):
        check_item(ItemKind.TRANSACTION, payload, NAME, False)


def test_whatever_is_damaged_is_refused_by_a_value_error_or_is_still_sound() -> None:
    number = random.SystemRandom().getrandbits(32)
    print(f"seed {number}")
    chance = random.Random(number)
    options = {"unicode_errors": "surrogatepass"}
    whole = msgpack.unpackb(encode_transaction(TRANSACTION), **options)
    refused = 0
    for _ in range(2000):
        payload = msgpack.packb(damaged(chance, whole), **options)
        try:
            check_item(ItemKind.TRANSACTION, payload, NAME, True)
        except ValueError:
            refused += 1
    assert refused > 1000
