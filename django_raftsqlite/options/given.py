"""The settings of one alias as they were given, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..wording import suggest

OPTIONS = (
    "node",
    "peers",
    "join",
    "role",
    "readmit",
    "secret",
    "tls",
    "reads",
    "max_staleness",
    "timeout",
    "lease_timeout",
    "transaction_mode",
    "init_command",
    "functions",
    "election_timeout",
    "apply_timeout",
    "max_transaction_bytes",
    "wal_limit",
    "log_entries",
    "log_bytes",
    "snapshot_rate",
    "on_divergence",
    "archive",
    "mode",
    "host",
)
_SQLITE3_OPTIONS = frozenset(
    {"check_same_thread", "detect_types", "isolation_level", "uri", "factory", "cached_statements", "autocommit"}
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A wrong value: ``path`` says where it stands, ``text`` what was found, ``advice`` what to write instead.

    ``id`` is the number of its system check, such as ``"E003"``.
    """

    id: str
    path: str
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path} {self.text} {self.advice}"


class Given:
    """``DATABASES[alias]``: what stands there, and in ``problems``, in the order found, what is wrong with it.

    Those who read an option report a wrong value here and go on with its default, so that all problems are found.
    """

    def __init__(self, alias: str, database: Mapping[str, Any]) -> None:
        self.alias = alias
        self.path = f'DATABASES["{alias}"]'
        self.database = database
        self.options: Mapping[str, Any] = database.get("OPTIONS") or {}
        self.problems: list[Problem] = []

    def option(self, name: str) -> Any:
        """``OPTIONS[name]``, unchecked; None where it is not given, which means the default."""
        return self.options.get(name)

    def problem(self, number: str, option: str, text: str, advice: str) -> None:
        """Report ``option``: a name of :data:`OPTIONS`, or else the path below the alias, such as ``["NAME"]``."""
        path = f'{self.path}["OPTIONS"]["{option}"]' if option in OPTIONS else f"{self.path}{option}"
        self.problems.append(Problem(number, path, text, advice))

    def has_problem(self, number: str) -> bool:
        """Whether one of this number was reported."""
        return any(problem.id == number for problem in self.problems)

    def check_keys(self) -> None:
        """Report the keys that no option has, and options beside ``OPTIONS``."""
        for key in self.options:
            if key in OPTIONS:
                continue
            if key in _SQLITE3_OPTIONS:
                advice = "It belongs to the sqlite3 module, which is not used here. Remove it."
            else:
                advice = f"{suggest(key, OPTIONS)} Write one of {', '.join(OPTIONS)}.".strip()
            self.problem("E001", f'["OPTIONS"]["{key}"]', "is not an option of this backend.", advice)
        for key in self.database:
            if key in OPTIONS:
                self.problem(
                    "E001", f'["{key}"]', "is in the wrong place.", f'Write it as {self.path}["OPTIONS"]["{key}"].'
                )
