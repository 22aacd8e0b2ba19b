"""Segments of the archive: files that hold committed log entries, each named by what is in it."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import msgpack

FORMAT = 1
ROOT = "log"
SUFFIX = ".entries.gz"
LARGEST = 64 * 1024 * 1024
"""Bytes of a segment, unpacked: what is larger is none of ours."""
BLOCK_BITS = 16
"""Segments whose first entries have an index in the same block of 65,536 share a folder."""

_NAME = re.compile(rf"(\d{{20}})-(\d{{20}})-([0-9a-f]{{32}}){re.escape(SUFFIX)}")

LogEntry = tuple[int, int, bytes]
"""(index, term, payload); an empty payload is an entry of Raft's own."""


class BadSegment(ValueError):
    """A file is not the segment that its name says. The text says why."""


class SegmentName(NamedTuple):
    """What a segment's name says: the entries from ``first`` to ``last`` are in it, and its hash."""

    first: int
    last: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.first:020d}-{self.last:020d}-{self.sha256}{SUFFIX}"

    def path(self, archive: bytes) -> str:
        """Where it is kept."""
        return f"{folder_of(archive)}/{self.first >> BLOCK_BITS:012x}/{self}"


def folder_of(archive: bytes) -> str:
    """The folder of an archive, which 16 bytes name."""
    return f"{ROOT}/{archive.hex()}"


def parse_name(name: str) -> SegmentName | None:
    """The inverse of ``str(SegmentName)``; None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None or int(match[1]) > int(match[2]):
        return None
    return SegmentName(int(match[1]), int(match[2]), match[3])


def encode_segment(archive: bytes, entries: Sequence[LogEntry]) -> tuple[SegmentName, bytes]:
    """Write entries down, which follow each other; at least one."""
    packed: bytes = msgpack.packb([FORMAT, archive, entries], use_bin_type=True)
    data = gzip.compress(packed, 6, mtime=0)
    return SegmentName(entries[0][0], entries[-1][0], hashlib.sha256(data).hexdigest()[:32]), data


def decode_segment(name: SegmentName, archive: bytes, data: bytes) -> list[LogEntry]:
    """The entries of a segment of that archive. Raises BadSegment."""
    if hashlib.sha256(data).hexdigest()[:32] != name.sha256:
        raise BadSegment("it was not written to its end, or is damaged")
    try:
        with gzip.GzipFile(fileobj=BytesIO(data)) as file:
            packed = file.read(LARGEST + 1)
        if len(packed) > LARGEST:
            raise BadSegment("it is too large")
        form, of, found = msgpack.unpackb(packed)
        entries = [(int(index), int(term), bytes(payload)) for index, term, payload in found]
    except BadSegment:
        raise
    except (OSError, EOFError, zlib.error, TypeError, ValueError, msgpack.UnpackException) as error:
        raise BadSegment(f"it cannot be read: {error}") from error
    if (form, of) != (FORMAT, archive):
        raise BadSegment("it is of another format, or another archive")
    if [index for index, _, _ in entries] != list(range(name.first, name.last + 1)):
        raise BadSegment("its entries are not those of its name")
    return entries
