"""Transactions that come in parts: the rules of apply, and of the encoding."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from django_raftsqlite.sqlite.copying import copy_database
from django_raftsqlite.sqlite.entry import (
    Item,
    ItemKind,
    Outcome,
    RequestId,
    Status,
    Transaction,
    decode_transaction,
    encode_transaction,
)
from django_raftsqlite.sqlite.errors import MalformedEntry, NodeFault
from django_raftsqlite.sqlite.parts import (
    Encoded,
    Part,
    Parted,
    TransactionTooLarge,
    decode_part,
    decode_parted,
    encode_part,
    encode_parted,
    encode_pieces,
)
from tests.support.dumps import dump

from .replay import CLOCK, ORIGIN, Replica, Spoken, close_origin, expire, open_origin, statement, transaction

Make = Callable[..., Replica]

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b)"
OTHER = bytes(range(100, 116))


class Sent:
    """A transaction of ORIGIN with this sequence, as its author would cut it; its parts have the next sequences."""

    def __init__(self, sequence: int, *spoken: Spoken, part_bytes: int = 40, low_water: int = 1, **fields) -> None:
        self.request = RequestId(ORIGIN, sequence)
        self.low_water = low_water
        statements = tuple(statement(one) for one in spoken)
        self.transaction = Transaction(self.request, low_water, statements, **fields)
        self.encoded = encode_pieces(self.transaction, limit=10**9, part_bytes=part_bytes)
        assert len(self.encoded.pieces) > 1

    @property
    def parts(self) -> list[Item]:
        return [self.part(number, piece) for number, piece in enumerate(self.encoded.pieces)]

    def part(self, number: int, data: bytes) -> Item:
        request = RequestId(ORIGIN, self.request.sequence + 1 + number)
        part = Part(request, self.low_water, self.request.sequence, number, data)
        return Item(ItemKind.PART, encode_part(part))

    def whole(self, **changed) -> Item:
        parted = self.encoded.parted(self.request, self.low_water)._replace(**changed)
        return Item(ItemKind.PARTED_TRANSACTION, encode_parted(parted))


def expire_parts(idle_ms: int) -> Item:
    return Item(ItemKind.EXPIRE_PARTS, b"\x91" + idle_ms.to_bytes(1, "big"))


def kept_parts(replica: Replica) -> int:
    """How many parts are in the file; the machine's own count agrees on whether there are any."""
    ((rows,),) = replica.rows("SELECT count(*) FROM _raftsqlite_part")
    assert (rows > 0) == (replica.machine.counts()["parted"] > 0)
    return rows


def statuses(outcomes: list[Outcome]) -> list[Status]:
    return [outcome.status for outcome in outcomes]


INSERTS = [("INSERT INTO t(a, b) VALUES (?, ?)", (number, "x" * 30)) for number in range(5)]


class TestApply:
    def test_a_transaction_in_parts_does_what_it_does_whole(self, make_replica: Make) -> None:
        """Each part is answered with DONE; the last item runs the transaction, and its parts are gone with it."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        for item in sent.parts:
            assert statuses(replica.apply(item)) == [Status.DONE]
            assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        assert kept_parts(replica) == len(sent.encoded.pieces)
        version = replica.machine.base.version
        assert statuses(replica.apply(sent.whole())) == [Status.DONE]
        assert replica.rows("SELECT count(*) FROM t") == [(5,)]
        assert replica.machine.base == (bytes(16), version + 1, sent.request.to_bytes())
        assert kept_parts(replica) == 0

    def test_an_autocommit_statement_in_parts_answers_with_its_rows(self, make_replica: Make) -> None:
        """As it would in one piece."""
        replica = make_replica(TABLE)
        sent = Sent(10, ("INSERT INTO t(a) VALUES (?) RETURNING id, a", ("y" * 100,)))
        replica.apply(*sent.parts)
        (outcome,) = replica.apply(sent.whole())
        assert outcome.result is not None
        assert outcome.result.rows == [(1, "y" * 100)]
        assert replica.apply(sent.whole()) == [outcome]

    def test_a_node_that_took_a_copy_has_the_parts_that_came_before(self, make_replica: Make, tmp_path: Path) -> None:
        """The last item finds them on every node, whether it has applied them or not."""
        author, other = make_replica(TABLE), make_replica()
        sent = Sent(10, *INSERTS)
        author.apply(*sent.parts[:-1])
        copy_database(author.path, tmp_path / "copy", 0o600, lambda: None)
        other.machine.install(tmp_path / "copy", lambda: None)
        for replica in (author, other):
            assert kept_parts(replica) == len(sent.parts) - 1
            replica.apply(sent.parts[-1])
            assert statuses(replica.apply(sent.whole())) == [Status.DONE]
            assert kept_parts(replica) == 0
        assert other.machine.digest == author.machine.digest
        assert dump(other.path) == dump(author.path)

    @pytest.mark.parametrize("seed", range(20))
    def test_any_split_gives_the_same_file_and_digest(self, make_replica: Make, seed: int) -> None:
        """However it is cut, in whatever order its parts come, how often, with what between, and restarts."""
        print("seed", seed)
        draw = random.Random(seed)
        spoken = [
            (f"INSERT INTO t(a, b) VALUES (?, random()) -- {'.' * draw.randrange(60)}", (draw.randbytes(20),))
            for _ in range(draw.randrange(1, 12))
        ]
        spoken.append("UPDATE t SET b = datetime('now') WHERE id % 2")
        neighbour = transaction(1, "INSERT INTO t(a) VALUES ('neighbour')", origin=OTHER)

        whole = make_replica(TABLE)
        whole.apply(open_origin(OTHER))
        whole.apply(neighbour)
        sent = Sent(10, *spoken, part_bytes=draw.randrange(1, 150) if seed else 1)
        whole.apply(Item(ItemKind.TRANSACTION, encode_transaction(sent.transaction)))

        parted = make_replica(TABLE)
        parted.apply(open_origin(OTHER))
        items = sent.parts + draw.choices(sent.parts, k=3)
        draw.shuffle(items)
        neighbour_at = draw.randrange(len(items))
        while items:
            together = [items.pop() for _ in range(min(len(items), draw.randrange(1, 4)))]
            parted.apply(*together)
            if len(items) <= neighbour_at:
                neighbour_at = -1
                parted.apply(neighbour)
            if draw.random() < 0.2:
                parted.restart()
        parted.apply(sent.whole())
        assert parted.machine.digest == whole.machine.digest
        assert parted.machine.base == whole.machine.base
        assert dump(parted.path) == dump(whole.path)
        assert kept_parts(parted) == 0

    def test_parts_and_the_transaction_may_share_an_entry(self, make_replica: Make) -> None:
        """Apply needs nothing but the order of the log."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        assert set(statuses(replica.apply(*sent.parts, sent.whole()))) == {Status.DONE}
        assert replica.rows("SELECT count(*) FROM t") == [(5,)]
        assert kept_parts(replica) == 0

    def test_a_missing_part_is_a_result_and_no_fault(self, make_replica: Make) -> None:
        """Nothing is executed, the answer is kept, and what there was of parts is gone."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        replica.apply(*sent.parts[:1], *sent.parts[2:])
        (outcome,) = replica.apply(sent.whole())
        assert outcome.status is Status.INCOMPLETE
        assert "part 1 of" in outcome.message
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        assert kept_parts(replica) == 0
        # The author was told that it was not executed; parts that come late must not change that.
        replica.apply(*sent.parts)
        assert kept_parts(replica) == 0
        assert replica.apply(sent.whole()) == [outcome]
        replica.restart()
        assert replica.apply(sent.whole()) == [outcome]

    @pytest.mark.parametrize("changed", [{"sha256": bytes(32)}, {"size": 7}, {"pieces": 2}, {"pieces": 500}])
    def test_parts_that_are_not_what_was_announced_are_refused(self, make_replica: Make, changed: dict) -> None:
        """Hash, size and number of the parts must all be right."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        replica.apply(*sent.parts)
        assert statuses(replica.apply(sent.whole(**changed))) == [Status.INCOMPLETE]
        assert replica.rows("SELECT count(*) FROM t") == [(0,)]
        assert kept_parts(replica) == 0

    def test_parts_of_another_transaction_are_refused(self, make_replica: Make) -> None:
        """What is run is what the request's id names, or nothing."""
        replica = make_replica(TABLE)
        sent, impostor = Sent(10, *INSERTS), Sent(11, *INSERTS)
        encoded = impostor.encoded
        replica.apply(*(sent.part(number, piece) for number, piece in enumerate(encoded.pieces)))
        whole = encoded.parted(sent.request, 1)
        (outcome,) = replica.apply(Item(ItemKind.PARTED_TRANSACTION, encode_parted(whole)))
        assert outcome.status is Status.INCOMPLETE

    def test_a_part_that_this_node_damaged_is_a_fault_of_the_node(self, make_replica: Make) -> None:
        """Other nodes have it whole and go on: a result here would fork."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        replica.apply(*sent.parts)
        replica.machine._connection.execute("UPDATE _raftsqlite_part SET data = x'00' WHERE number = 1")
        index = replica.machine.applied_index
        with pytest.raises(NodeFault, match="damaged"):
            replica.apply(sent.whole())
        assert replica.machine.applied_index == index

    def test_what_cannot_be_decoded_is_a_fault(self, make_replica: Make) -> None:
        """As for a transaction in one piece: another version wrote it."""
        replica = make_replica(TABLE)
        data = b"\x97" + b"\xc1" * 50
        sent = Sent(10, *INSERTS)
        sent.encoded = Encoded([data[:30], data[30:]], len(data), hashlib.sha256(data).digest())
        replica.apply(*sent.parts)
        with pytest.raises(MalformedEntry):
            replica.apply(sent.whole())
        with pytest.raises(MalformedEntry):
            replica.apply(Item(ItemKind.PART, b"\x90"))
        with pytest.raises(MalformedEntry):
            replica.apply(Item(ItemKind.PARTED_TRANSACTION, b"\xc1"))

    def test_a_conflict_is_told_again_to_a_request_in_parts(self, make_replica: Make) -> None:
        """Its parts are gone, so that the copy could not be judged anew."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS, base=replica.machine.base)
        replica.apply(*sent.parts)
        replica.apply(transaction(9, "INSERT INTO t(a) VALUES (-1)"))
        (outcome,) = replica.apply(sent.whole())
        assert outcome.status is Status.CONFLICT
        assert replica.apply(sent.whole()) == [outcome]
        assert kept_parts(replica) == 0

    def test_its_own_parts_do_not_move_the_state_it_is_based_on(self, make_replica: Make) -> None:
        """Parts make no version, its own or others'."""
        replica = make_replica(TABLE)
        base = replica.machine.base
        sent, others = Sent(10, *INSERTS, base=base), Sent(400, *INSERTS)
        replica.apply(*sent.parts, *others.parts)
        assert replica.machine.base == base
        assert statuses(replica.apply(sent.whole())) == [Status.DONE]

    def test_a_statement_that_ends_the_sqlite_transaction_spoils_only_its_own(self, make_replica: Make) -> None:
        """OR ROLLBACK: the entry is run again from the first, and the parts are still there."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS, "INSERT OR ROLLBACK INTO t(a) VALUES (0)")
        replica.apply(*sent.parts)
        outcomes = replica.apply(
            transaction(8, "INSERT INTO t(a) VALUES ('before')"),
            sent.whole(),
            transaction(9, "INSERT INTO t(a) VALUES ('after')"),
        )
        assert statuses(outcomes) == [Status.DONE, Status.ERROR, Status.DONE]
        assert outcomes[1].code == apsw.SQLITE_CONSTRAINT_UNIQUE
        assert replica.rows("SELECT a FROM t ORDER BY a") == [("after",), ("before",)]
        assert kept_parts(replica) == 0

    def test_a_solo_transaction_may_come_in_parts(self, make_replica: Make) -> None:
        """Without foreign keys, as Django rebuilds tables; and VACUUM, however long its text."""
        replica = make_replica("CREATE TABLE p(id INTEGER PRIMARY KEY)", "CREATE TABLE c(p REFERENCES p)")
        orphans = [f"INSERT INTO c VALUES ({number})" for number in range(5)]
        sent = Sent(10, *orphans, pragmas={"foreign_keys": 0}, solo=True)
        replica.apply(*sent.parts)
        assert statuses(replica.apply(sent.whole(), solo=True)) == [Status.DONE]
        assert replica.rows("SELECT count(*) FROM c") == [(5,)]
        sent = Sent(100, f"VACUUM -- {'.' * 100}", solo=True)
        replica.apply(*sent.parts)
        assert statuses(replica.apply(sent.whole(), solo=True)) == [Status.DONE]
        assert statuses(replica.apply(sent.whole(), solo=True)) == [Status.DONE]
        assert kept_parts(replica) == 0


class TestPartsThatNobodyWaitsFor:
    def test_parts_go_when_the_low_water_mark_passes_their_transaction(self, make_replica: Make) -> None:
        """Its author gave up: the transaction would be refused."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        replica.apply(*sent.parts)
        replica.apply(transaction(300, "INSERT INTO t(a) VALUES (1)", low_water=10))
        assert kept_parts(replica) == len(sent.parts)
        replica.apply(transaction(301, "INSERT INTO t(a) VALUES (2)", low_water=11))
        assert kept_parts(replica) == 0
        assert statuses(replica.apply(sent.parts[0])) == [Status.REFUSED]
        assert statuses(replica.apply(sent.whole())) == [Status.REFUSED]
        assert kept_parts(replica) == 0

    def test_parts_go_when_their_origin_is_closed_or_expires(self, make_replica: Make) -> None:
        """The process has ended, cleanly or not. Others' parts stay."""
        for end in (close_origin(), expire(0, 0)):
            replica = make_replica(TABLE)
            sent = Sent(10, *INSERTS)
            replica.apply(*sent.parts)
            replica.restart()
            replica.apply(end)
            assert kept_parts(replica) == 0
            assert statuses(replica.apply(sent.parts[0], sent.whole())) == [Status.REFUSED] * 2

    def test_parts_of_an_author_that_went_silent_expire(self, make_replica: Make) -> None:
        """By the log's time, counted from the newest part; its transaction is then incomplete."""
        replica = make_replica(TABLE)
        old, fresh = Sent(10, *INSERTS), Sent(400, *INSERTS)
        replica.apply(*old.parts, fresh.parts[0])
        replica.apply(*fresh.parts, time=CLOCK + 50)
        replica.apply(expire_parts(100), time=CLOCK + 99)
        assert replica.machine.counts()["parted"] == 2
        replica.restart()
        replica.apply(expire_parts(100), time=CLOCK + 100)
        assert replica.machine.counts()["parted"] == 1
        assert statuses(replica.apply(fresh.whole(), old.whole())) == [Status.DONE, Status.INCOMPLETE]
        assert kept_parts(replica) == 0

    def test_a_part_of_a_decided_transaction_is_not_kept(self, make_replica: Make) -> None:
        """A copy that was still under way when the transaction was decided."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        replica.apply(*sent.parts)
        replica.apply(sent.whole())
        assert statuses(replica.apply(sent.parts[2])) == [Status.DONE]
        assert kept_parts(replica) == 0

    def test_an_entry_that_cannot_be_applied_keeps_no_part(self, make_replica: Make) -> None:
        """Parts and applied index are committed together, and memory follows the file."""
        replica = make_replica(TABLE)
        sent = Sent(10, *INSERTS)
        with pytest.raises(MalformedEntry):
            replica.apply(*sent.parts, Item(ItemKind.EXPIRE_PARTS, b"\xc1"))
        assert kept_parts(replica) == 0


class TestEncoding:
    @pytest.mark.parametrize("part_bytes", [1, 7, 64, 10_000])
    def test_the_pieces_are_the_encoding(self, part_bytes: int) -> None:
        """Cut into pieces of one size, whatever the size of the statements."""
        parameters = {"a": None, "b": 2**63 - 1, "c": 1.5, "d": "\udcff", "e": bytes(300)}
        spoken = [statement(("INSERT", parameters)), statement("x" * 130)._replace(expect=bytes(8))]
        made = Transaction(RequestId(ORIGIN, 3), 2, tuple(spoken), None, {"foreign_keys": 0}, True)
        encoded = encode_pieces(made, limit=10_000, part_bytes=part_bytes)
        data = b"".join(encoded.pieces)
        assert data == encode_transaction(made)
        assert decode_transaction(data) == made
        assert (encoded.size, encoded.sha256) == (len(data), hashlib.sha256(data).digest())
        assert {len(piece) for piece in encoded.pieces[:-1]} <= {part_bytes}
        assert 0 < len(encoded.pieces[-1]) <= part_bytes

    def test_a_transaction_beyond_the_limit_is_refused_with_its_size(self) -> None:
        """So that its author can be told how much there is; at the limit it is taken."""
        made = Transaction(RequestId(ORIGIN, 3), 2, tuple(statement(one) for one in INSERTS))
        size = len(encode_transaction(made))
        assert encode_pieces(made, limit=size).size == size
        with pytest.raises(TransactionTooLarge) as caught:
            encode_pieces(made, limit=size - 1, part_bytes=10)
        assert caught.value.size == size

    def test_items_survive_the_log(self) -> None:
        """What is encoded is decoded."""
        part = Part(RequestId(ORIGIN, 7), 3, 5, 1, b"\xff" * 10)
        assert decode_part(encode_part(part)) == part
        parted = Parted(RequestId(ORIGIN, 5), 3, 2**40, 12, bytes(32))
        assert decode_parted(encode_parted(parted)) == parted
