"""A Django database backend: SQLite, replicated by a Raft group that runs inside the Django processes.

``ENGINE = "django_raftsqlite"``. What applications import from here needs no configured settings.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .consistency import reads
    from .errors import CommitOutcomeUnknown, HostLost, LeaseTimeout, TransactionConflict, Unavailable
    from .retrying import retry
    from .status import node_status
    from .tokens import session_token

__version__ = "0.1.0"

__all__ = [
    "CommitOutcomeUnknown",
    "HostLost",
    "LeaseTimeout",
    "TransactionConflict",
    "Unavailable",
    "__version__",
    "node_status",
    "reads",
    "retry",
    "session_token",
]

_HOME = {
    "CommitOutcomeUnknown": "errors",
    "HostLost": "errors",
    "LeaseTimeout": "errors",
    "TransactionConflict": "errors",
    "Unavailable": "errors",
    "node_status": "status",
    "reads": "consistency",
    "retry": "retrying",
    "session_token": "tokens",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: the layers below live in this package too, and must not import Django.
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
