"""Frames: what is sent arrives, whole and in order; what is not a frame is refused before it costs anything."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_raftsqlite.raft.frames import KEEPALIVE, MAX_FRAME, MAX_HELLO, FrameDecoder, FrameEncoder, FrameError

_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=50) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
_messages = st.dictionaries(st.text(max_size=8), _values, max_size=6)


def _all(decoder: FrameDecoder) -> list[dict[str, Any]]:
    messages = []
    while (message := decoder.read()) is not None:
        messages.append(message)
    return messages


@given(st.lists(_messages, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=20), st.booleans())
def test_messages_arrive_whole_and_in_order_however_tcp_cuts_the_stream(
    messages: list[dict[str, Any]], cuts: list[int], keepalives: bool
) -> None:
    """Neither the cuts of the stream nor keepalives between frames change what is read."""
    encoder = FrameEncoder()
    stream = b"".join((KEEPALIVE if keepalives else b"") + encoder.encode(message) for message in messages)
    decoder = FrameDecoder(MAX_FRAME)
    received = []
    at = turn = 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        decoder.feed(stream[at : at + size])
        received += _all(decoder)
        at, turn = at + size, turn + 1
    assert received == messages


@given(st.binary(max_size=200))
def test_no_bytes_whatever_raise_anything_but_frame_error(data: bytes) -> None:
    """A stranger's bytes are either a map or a FrameError."""
    decoder = FrameDecoder(MAX_HELLO)
    decoder.feed(struct.pack(">I", len(data)) + data)
    try:
        message = decoder.read()
    except FrameError:
        return
    assert message is None or isinstance(message, dict)


@pytest.mark.parametrize("limit", [MAX_HELLO, MAX_FRAME])
def test_an_oversized_frame_is_refused_by_its_length_alone(limit: int) -> None:
    """No byte of the body has to arrive: a length above the limit ends it."""
    decoder = FrameDecoder(limit)
    decoder.feed(struct.pack(">I", limit))
    assert decoder.read() is None
    decoder = FrameDecoder(limit)
    decoder.feed(struct.pack(">I", limit + 1))
    with pytest.raises(FrameError, match=f"{limit + 1} bytes exceeds the limit of {limit}"):
        decoder.read()


def test_a_raised_limit_applies_to_the_frames_that_follow() -> None:
    """A frame that came in the same read as the end of the handshake is judged by the new limit."""
    encoder = FrameEncoder()
    large = {"data": b"x" * (2 * MAX_HELLO)}
    decoder = FrameDecoder(MAX_HELLO)
    decoder.feed(encoder.encode({"small": 1}) + encoder.encode(large))
    assert decoder.read() == {"small": 1}
    decoder.limit = MAX_FRAME
    assert decoder.read() == large


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xc1", "a byte msgpack does not use"),
        (b"\xdd\xff\xff\xff\xff", "an array of four thousand million"),
        (b"\xdf\xff\xff\xff\xff", "a map of four thousand million"),
        (b"\xc6\xff\xff\xff\xff", "a BLOB of four GiB"),
        (b"\x91" * 3000, "nested deeper than the decoder's stack"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x01", "an extension type"),
        (b"\x81\xa1\xff\x01", "text that is not UTF-8"),
        (b"\x81\x01\x01", "a key that is not text"),
        (b"\x80\x80", "two values"),
        (b"\x93\x01\x02\x03", "not a map"),
    ],
)
def test_what_is_not_one_map_of_plain_types_is_refused(body: bytes, why: str) -> None:
    """Nothing but a map of plain types is a message, and nothing large is allocated to find that out."""
    decoder = FrameDecoder(MAX_FRAME)
    decoder.feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(FrameError):
        decoder.read()


def test_a_message_too_large_to_be_read_is_not_sent() -> None:
    """The author hears of it, not the peer, whose session would end."""
    encoder = FrameEncoder()
    with pytest.raises(FrameError, match="exceeds the limit"):
        encoder.encode({"data": b"x" * MAX_FRAME})
    assert msgpack.unpackb(encoder.encode({"still": "usable"})[4:]) == {"still": "usable"}
