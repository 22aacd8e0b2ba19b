"""What is written down beside a backup, and makes it one: a data file without a manifest is a half one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

FORMAT = 1
SUFFIX = ".json"
LARGEST = 64 * 1024
"""Bytes; what is larger is no manifest."""


class ManifestError(ValueError):
    """What was read is no manifest that this version can use. The text says why."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup: ``file`` is the name of the data, beside the manifest.

    ``size`` and ``sha256`` are those of the file as it is kept, ``database_size`` and ``database_sha256`` those of
    the SQLite file in it (``compression``: "gzip" or None). The database is as it was after the log entry ``index``
    of ``term``; ``lineage``, ``digest`` and ``archive`` are hexadecimal, ``archive`` names the archive of the group's
    log, or is None where there was none. ``time`` is when it was read: ISO 8601, UTC.
    """

    file: str
    alias: str
    time: str
    index: int
    term: int
    lineage: str
    version: int
    digest: str
    archive: str | None
    size: int
    sha256: str
    database_size: int
    database_sha256: str
    compression: str | None
    node: str
    package: str
    sqlite: str
    format: int = FORMAT

    @property
    def moment(self) -> datetime:
        """``time`` as a datetime."""
        return datetime.fromisoformat(self.time)

    def encode(self) -> bytes:
        """As it is written down."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


_TYPES: dict[str, tuple[type, ...]] = {
    field.name: {"str": (str,), "int": (int,), "str | None": (str, type(None))}[str(field.type)]
    for field in fields(Manifest)
}


def decode_manifest(data: bytes) -> Manifest:
    """The inverse of :meth:`Manifest.encode`; raises ManifestError."""
    if len(data) > LARGEST:
        raise ManifestError("it is too large")
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ManifestError("it is no JSON object")
    if value.get("format") != FORMAT:
        raise ManifestError(f"its format is {value.get('format')!r:.40}, and this version reads {FORMAT}")
    for name, types in _TYPES.items():
        if name not in value or not isinstance(value[name], types) or isinstance(value[name], bool):
            raise ManifestError(f"{name} is missing, or of another type")
    manifest = Manifest(**{name: value[name] for name in _TYPES})
    if not manifest.file or not manifest.file.isprintable() or "/" in manifest.file or manifest.file.startswith("."):
        raise ManifestError(f"its file is {manifest.file!r:.80}, which is not beside it")
    if manifest.compression not in (None, "gzip"):
        raise ManifestError(f"its compression is {manifest.compression!r:.40}")
    try:
        aware = manifest.moment.tzinfo is not None
    except ValueError as error:
        raise ManifestError(f"its time is {manifest.time!r:.40}") from error
    if not aware or min(manifest.index, manifest.size, manifest.database_size) < 0:
        raise ManifestError("a number or the time is out of range")
    return manifest
