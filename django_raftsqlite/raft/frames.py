"""Length-prefixed msgpack frames: what one TCP session between two members carries."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

MAX_FRAME = 16 * 1024 * 1024
"""The largest body (bytes) an authenticated peer may send."""

MAX_HELLO = 4 * 1024
"""The largest body (bytes) accepted from a peer that has not proven who it is."""

KEEPALIVE = b"\0\0\0\0"
"""A frame without a body: nothing to say, but alive."""

_LENGTH = struct.Struct(">I")
_KEEP_PACKER = 1024 * 1024


class FrameError(Exception):
    """The peer sent bytes that are not frames of this protocol, or a message is too large to be one."""


class FrameEncoder:
    """Turns messages into frames. One per thread: the packer's buffer is reused from call to call."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(use_bin_type=True)

    def encode(self, message: dict[str, Any]) -> bytes:
        """The frame of ``message`` (plain types only).

        Raises FrameError when the body exceeds MAX_FRAME, TypeError, ValueError or OverflowError for what
        msgpack cannot hold.
        """
        body: bytes = self._packer.pack(message)
        if len(body) > _KEEP_PACKER:
            # The packer never gives its buffer back; one large entry must not be held for the process's life.
            self._packer = msgpack.Packer(use_bin_type=True)
        if len(body) > MAX_FRAME:
            raise FrameError(f"a message of {len(body)} bytes exceeds the limit of {MAX_FRAME}")
        return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts one peer's byte stream into messages.

    ``limit`` (bytes) is checked against the length a peer announces, before anything of the body is kept;
    it may be raised between two frames. Invariant: at most ``limit`` bytes of an unfinished frame plus one
    read of the socket are held.
    """

    def __init__(self, limit: int = MAX_HELLO) -> None:
        self.limit = limit
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the socket."""
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    def read(self) -> dict[str, Any] | None:
        """The next message, or None when it is not complete yet. Keepalives are skipped.

        Raises FrameError; the stream has no meaning after it.
        """
        while len(self._data) - self._at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data, self._at)
            if length > self.limit:
                raise FrameError(f"a frame of {length} bytes exceeds the limit of {self.limit}")
            begin = self._at + _LENGTH.size
            if len(self._data) < begin + length:
                return None
            self._at = begin + length
            if length:
                with memoryview(self._data) as view, view[begin : self._at] as body:
                    return _decode(body, self.limit)
        return None


def _decode(body: memoryview, limit: int) -> dict[str, Any]:
    # Every container is bounded by what could be inside the frame: msgpack allocates an array as soon as
    # it has read the announced length.
    items = min(len(body), limit // 8)
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            ext_hook=_refuse_extension,
            max_str_len=len(body),
            max_bin_len=len(body),
            max_array_len=items,
            max_map_len=items,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        # msgpack's own text may quote the peer's bytes, so only its kind is told.
        raise FrameError(f"a frame of {len(body)} bytes is not msgpack ({type(error).__name__})") from None
    if type(message) is not dict:
        raise FrameError("a frame does not hold a map")
    return message


def _refuse_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code}")
