"""What is decoded from bytes that anybody may have written: it is understood, or the documented error is raised."""

from __future__ import annotations

import contextlib
import json
import struct
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import msgpack
from hypothesis import strategies as st

from django_raftsqlite.backups.manifest import Manifest, ManifestError, decode_manifest
from django_raftsqlite.raft.filter import _FIELDS, ProtocolViolation, validated
from django_raftsqlite.raft.frames import MAX_HELLO, FrameDecoder, FrameEncoder, FrameError
from django_raftsqlite.raft.handshake import Handshake, HandshakeError, Identity
from django_raftsqlite.sqlite.entry import (
    Base,
    Column,
    Entry,
    Item,
    ItemKind,
    Outcome,
    RequestId,
    Result,
    Statement,
    Status,
    Transaction,
    decode_entry,
    decode_outcome,
    decode_transaction,
    encode_entry,
    encode_outcome,
    encode_transaction,
)
from django_raftsqlite.sqlite.errors import MalformedEntry
from django_raftsqlite.sqlite.parts import decode_part, decode_parted
from django_raftsqlite.sqlite.restoring import decode_restore
from tests.fuzz.fuzzing import JUNK, damage_bytes, fuzz, values

LOW, HIGH = "127.0.0.1:7101", "127.0.0.1:7102"


def messages_of(data: list[bytes]) -> list[Any]:
    decoder, found = FrameDecoder(MAX_HELLO), []
    for piece in data:
        decoder.feed(piece)
        while (message := decoder.read()) is not None:
            found.append(message)
    return found


def test_a_stream_of_frames_is_messages_or_a_frame_error() -> None:
    whole = FrameEncoder().encode({"type": "ping", "seq": 1, "list": [1, {"a": b"x" * 30}], "text": "ä"})
    stream = st.lists(
        st.just(whole) | damage_bytes(whole) | st.binary(max_size=60) | values.map(framed), min_size=1, max_size=5
    )

    def check(data: list[bytes]) -> None:
        try:
            found = messages_of(data)
        except FrameError:
            return
        assert all(isinstance(message, dict) for message in found)

    assert fuzz(stream, check) > 50


def framed(value: Any) -> bytes:
    body = msgpack.packb(value, unicode_errors="surrogatepass")
    return struct.pack(">I", len(body)) + body


def test_no_stranger_s_frame_takes_much_more_memory_than_its_bytes() -> None:
    """Lists and maps in lists, announced as large as may be: 4 KiB take 8 MiB, for a moment, and none after it."""
    heads = st.sampled_from(
        [
            b"\xdd\xff\xff\xff\xff",
            b"\xdd\x00\x00\x01\xff",
            b"\xdc\x01\xff",
            b"\xde\x01\xff",
            b"\x90",
            b"\x91",
            b"\x80",
            b"\xc7\xff\x01",
        ]
    )

    def check(pattern: list[bytes]) -> None:
        body = (b"".join(pattern) * MAX_HELLO)[:MAX_HELLO]
        decoder = FrameDecoder(MAX_HELLO)
        decoder.feed(struct.pack(">I", len(body)) + body)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        with contextlib.suppress(FrameError):
            decoder.read()
        _, peak = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
        assert peak - before < 8 * 2**20
        assert after - before < 64 * 1024

    tracemalloc.start()
    try:
        assert fuzz(st.lists(heads, min_size=1, max_size=4), check) > 50
    finally:
        tracemalloc.stop()


def identity(address: str, secret: str) -> Identity:
    return Identity(
        address=address,
        others=frozenset({LOW, HIGH} - {address}),
        cluster=b"c" * 16,
        secret=secret,
        second_secret=f"{secret} too",
        facts={"sqlite": "3.50"},
    )


def test_nobody_is_believed_who_does_not_know_a_secret() -> None:
    """Everything else he knows: addresses, group, versions; he sends whole hellos and damaged ones, proofs of
    other secrets, the node's own words, and what comes to mind, in any order, to one that dials or is dialled."""
    field = st.sampled_from(
        ["magic", "protocols", "cluster", "from", "to", "nonce", "package", "facts", "member", "fresh"]
    )
    change = st.tuples(field, st.sampled_from(JUNK) | values)
    step = st.one_of(
        st.tuples(st.just("hello"), st.lists(change, max_size=2)),
        st.tuples(
            st.just("proof"),
            st.dictionaries(
                st.sampled_from(["proof", "also"]), st.binary(min_size=32, max_size=32) | st.sampled_from(JUNK)
            ),
        ),
        st.tuples(st.just("echo"), st.none()),
        st.tuples(st.just("handshake"), st.none()),
        st.tuples(st.just("message"), st.dictionaries(st.text(max_size=8), values, max_size=4)),
    )

    def check(example: tuple[bool, list[tuple[str, Any]]]) -> None:
        dials, steps = example
        node = identity(HIGH if dials else LOW, "the secret")
        handshake = Handshake(node, dial=LOW if dials else None)
        stranger = identity(LOW if dials else HIGH, "another")
        impostor = Handshake(stranger, dial=None if dials else LOW)
        begun = dials
        said: dict[str, Any] | None = handshake.start() if dials else None
        for kind, detail in steps:
            message: Any
            if kind == "hello":
                message = {**stranger.hello(node.address).wire(), **dict(detail)}
            elif kind == "echo":
                message = said
            elif kind == "handshake":
                try:
                    message = impostor.receive(said) if begun and said is not None else impostor.start()
                    begun = True
                except HandshakeError as error:
                    message = error.answer
            else:
                message = detail
            if not isinstance(message, dict):
                continue
            try:
                said = handshake.receive(message)
            except HandshakeError as error:
                said = error.answer
                break
            finally:
                assert handshake.peer is None and not handshake.done
                assert dials or said is None or not ({"proof", "also"} & said.keys()), (
                    "no proof for who has given none"
                )

    assert fuzz(st.tuples(st.booleans(), st.lists(step, min_size=1, max_size=5)), check) > 50


GOOD: dict[str, Any] = {
    "term": 5,
    "seq": 9,
    "re": 9,
    "last_log_index": 3,
    "last_log_term": 2,
    "commit_index": 3,
    "prevLogIdx": 3,
    "prevLogTerm": 2,
    "entries": [[b"\x00x", 4, 3], [b"\x00y", 5, 5]],
    "quiet": False,
    "next_node_idx": 4,
    "reset": False,
    "success": True,
    "transfer": False,
    "again": False,
    "learner": False,
    "index": 3,
    "leader": LOW,
    "refused": "",
    "cluster": b"c" * 16,
    "members": [LOW, HIGH],
    "id": b"",
}


def test_every_kind_of_message_is_whole_or_refused() -> None:
    """What passes has exactly its fields, each of its type, and entries that could be in one log."""
    kinds = st.sampled_from(sorted(_FIELDS))
    names = st.sampled_from(sorted(GOOD))
    edits = st.lists(st.tuples(names, st.sampled_from(JUNK) | values), max_size=2)
    entries = st.lists(
        st.tuples(
            st.binary(max_size=4) | st.sampled_from(JUNK),
            st.integers(0, 9) | st.sampled_from(JUNK),
            st.integers(0, 9),
        )
        | values,
        max_size=3,
    )

    def check(example: tuple[str, list[tuple[str, Any]], Any, list[str]]) -> None:
        kind, changes, given_entries, missing = example
        message = {"type": kind, **{name: GOOD[name] for name in _FIELDS[kind]}}
        assert validated(message)["type"] == kind
        message |= dict(changes)
        if given_entries is not None and "entries" in message:
            message["entries"] = given_entries
        for name in missing:
            message.pop(name, None)
        try:
            found = validated(message)
        except ProtocolViolation:
            return
        assert found.keys() == {"type", *_FIELDS[kind]}
        for name, value in found.items():
            if name in {"term", "seq", "re", "commit_index", "prevLogIdx", "next_node_idx", "index"}:
                assert type(value) is int and 0 <= value < 2**63
        if kind == "append_entries":
            indexes = [entry[1] for entry in found["entries"]]
            assert indexes == list(range(found["prevLogIdx"] + 1, found["prevLogIdx"] + 1 + len(indexes)))

    assert fuzz(st.tuples(kinds, edits, st.none() | entries, st.lists(names, max_size=1)), check) > 50
    for kind in JUNK:
        try:
            validated({"type": kind})
        except ProtocolViolation:
            continue
        raise AssertionError(kind)


TRANSACTION = Transaction(
    RequestId(b"o" * 16, 7),
    3,
    (Statement("INSERT INTO t VALUES (?, ?)", (1, "a"), 1, 2, b"12345678"), Statement("DELETE FROM t", None, 3, 4)),
    Base(b"l" * 16, 6, b"r" * 24),
    {"foreign_keys": 0},
)
OUTCOME = Outcome(Status.ERROR, Result((Column("a", None),), [(1, "x", b"y", 1.5, None)], 1, 2), 19, "UNIQUE")


def test_a_log_entry_is_decoded_or_malformed() -> None:
    """So a damaged entry stops a node before it, and does nothing else."""
    transaction = encode_transaction(TRANSACTION)
    entry = encode_entry(
        Entry(5, (Item(ItemKind.TRANSACTION, transaction), Item(ItemKind.OPEN_ORIGIN, b"o" * 16)), clock=9)
    )
    outcome = encode_outcome(OUTCOME)
    assert decode_entry(entry).items[0].payload == transaction
    packed = values.map(lambda value: bytes(msgpack.packb(value, unicode_errors="surrogatepass")))
    data = st.one_of(*map(damage_bytes, (entry, transaction, outcome)), packed, st.binary(max_size=60))

    def check(example: bytes) -> None:
        for decode in (decode_entry, decode_transaction, decode_outcome, decode_part, decode_parted, decode_restore):
            try:
                decode(example)
            except MalformedEntry:
                continue

    assert fuzz(data, check) > 50


MANIFEST = Manifest(
    "a.sqlite3",
    "default",
    datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
    9,
    2,
    "ab",
    7,
    "cd",
    None,
    100,
    "ef",
    100,
    "ef",
    None,
    LOW,
    "0.1",
    "3.50",
)


def test_a_manifest_is_whole_or_refused() -> None:
    """And its file is one beside it, that a file system can have."""
    fields = json.loads(MANIFEST.encode())
    assert decode_manifest(MANIFEST.encode()) == MANIFEST
    names = st.sampled_from([*fields, "more"])
    change = st.lists(
        st.tuples(names, values.filter(lambda value: not isinstance(value, bytes)) | st.text()), max_size=2
    )
    changed = change.map(lambda pairs: json.dumps({**fields, **dict(pairs)}, default=repr).encode())
    name = st.text(max_size=6).map(lambda text: json.dumps({**fields, "file": text}).encode())
    data = changed | name | damage_bytes(MANIFEST.encode()) | st.binary(max_size=80)

    def check(example: bytes) -> None:
        try:
            found = decode_manifest(example)
        except ManifestError:
            return
        assert found.file and "/" not in found.file and "\0" not in found.file and not found.file.startswith(".")
        assert found.file.encode()
        assert min(found.index, found.size, found.database_size) >= 0
        assert found.moment.tzinfo is not None

    assert fuzz(data, check) > 50
