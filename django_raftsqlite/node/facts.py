"""What two nodes must agree on for a replay to be exact, told in the handshake."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
import zoneinfo
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import apsw

from ..sqlite.functions import Registrar


def handshake_facts(registrars: Sequence[Registrar]) -> dict[str, str]:
    """``{"sqlite": "3.50", "python": "3.11", "architecture": ..., ...}``.

    Another SQLite or architecture may plan, compute or print differently; SQLite's patch releases repair faults
    only. Another Python, Django (whose functions SQL may call), time zone or time zone data can change what user
    functions and ``'localtime'`` give.
    """
    names = "\n".join(sorted(f"{r.__module__}.{getattr(r, '__qualname__', r)}" for r in registrars))
    return {
        "sqlite": ".".join(apsw.sqlite_lib_version().split(".")[:2]),
        "sqlite source": apsw.sqlite3_sourceid(),
        "architecture": platform.machine(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "django": _package("django") or "none",
        "tz": os.environ.get("TZ") or "/".join(time.tzname),
        "tzdata": _time_zone_data(),
        "functions": hashlib.sha256(names.encode()).hexdigest()[:16],
    }


def _package(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _time_zone_data() -> str:
    """Which release of the time zone data :mod:`zoneinfo` reads, as far as that says so: ``"2025b"``."""
    for folder in map(Path, zoneinfo.TZPATH):
        with suppress(OSError), (folder / "tzdata.zi").open(encoding="ascii", errors="replace") as file:
            words = file.readline(100).split()
            if words[:2] == ["#", "version"] and len(words) > 2:
                return words[2]
    return _package("tzdata") or "unknown"
