"""What two nodes must agree on for a replay to be exact, told in the handshake."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Sequence

import apsw

from ..sqlite.functions import Registrar


def handshake_facts(registrars: Sequence[Registrar]) -> dict[str, str]:
    """``{"sqlite": "3.50", "python": "3.11", "architecture": ..., ...}``.

    Another SQLite or architecture may plan, compute or print differently; SQLite's patch releases repair faults
    only. Another Python or time zone can change what user functions and ``'localtime'`` give.
    """
    names = "\n".join(sorted(f"{r.__module__}.{getattr(r, '__qualname__', r)}" for r in registrars))
    return {
        "sqlite": ".".join(apsw.sqlite_lib_version().split(".")[:2]),
        "sqlite source": apsw.sqlite3_sourceid(),
        "architecture": platform.machine(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "tz": os.environ.get("TZ") or "/".join(time.tzname),
        "functions": hashlib.sha256(names.encode()).hexdigest()[:16],
    }
