"""SQLite's pragmas, sorted by who may say them: https://sqlite.org/pragma.html.

One that is on no list is refused: a pragma SQLite adds later may change results or the file.
"""

from __future__ import annotations

import enum
from typing import Final

STATE: Final[dict[str, int]] = {
    "foreign_keys": 1,
    "defer_foreign_keys": 0,
    "ignore_check_constraints": 0,
    "legacy_alter_table": 0,
    "recursive_triggers": 0,
}
"""Connection state that changes what a statement means, with our defaults: it travels with every transaction."""

REPLICATED: Final = frozenset({"application_id", "user_version"})
"""Fields of the file: read locally, written through the log."""

READS: Final = frozenset(
    {
        "collation_list",
        "compile_options",
        "data_version",
        "database_list",
        "foreign_key_check",
        "foreign_key_list",
        "freelist_count",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "module_list",
        "page_count",
        "pragma_list",
        "quick_check",
        "stats",
        "table_info",
        "table_list",
        "table_xinfo",
    }
)
"""They only look; a value is the name of what to look at."""

LOGICAL: Final = REPLICATED | {
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "table_info",
    "table_list",
    "table_xinfo",
}
"""Their table-valued functions tell what is the same on every node, so that a write may use them."""

HARMLESS: Final = frozenset(
    {
        "automatic_index",
        "busy_timeout",
        "cache_size",
        "cache_spill",
        "cell_size_check",
        "checkpoint_fullfsync",
        "fullfsync",
        "mmap_size",
        "read_uncommitted",
        "shrink_memory",
        "soft_heap_limit",
        "synchronous",
        "temp_store",
        "threads",
        "wal_autocheckpoint",
    }
)
"""Tuning of one connection, usual in an `init_command`: run on the reader, where they change no result and no file.

`synchronous` and `wal_autocheckpoint` mean nothing on a connection that cannot write: what is on disk before a
write is acknowledged is the node's promise, not the connection's.
"""

NODE_OWNED: Final[dict[str, str]] = {
    "analysis_limit": "it would make ANALYZE differ between nodes",
    "auto_vacuum": "it changes the file, and the node owns that; run VACUUM instead",
    "case_sensitive_like": "it changes what LIKE means on one connection; use GLOB",
    "count_changes": "it changes what a statement returns",
    "empty_result_callbacks": "it changes what a statement returns",
    "encoding": "the file's encoding is fixed when the file is made",
    "full_column_names": "it changes the names of columns on one connection",
    "hard_heap_limit": "it would make the process's SQLite fail at random",
    "incremental_vacuum": "it changes the file; run VACUUM, which is replicated",
    "journal_mode": "the node needs WAL",
    "journal_size_limit": "the node owns the WAL file",
    "locking_mode": "the processes of one machine share the file",
    "max_page_count": "it would make one node refuse what the others accept",
    "optimize": "what it does depends on the history of one connection; run ANALYZE, which is replicated",
    "page_size": "the file's page size is fixed when the file is made",
    "query_only": "readers cannot write anyway, and writes go through the log",
    "reverse_unordered_selects": "it changes results on one connection",
    "schema_version": "only SQLite may set it",
    "secure_delete": "the node owns the file",
    "short_column_names": "it changes the names of columns on one connection",
    "temp_store_directory": "it changes the whole process",
    "trusted_schema": "the schema must mean the same on every connection",
    "wal_checkpoint": "the node checkpoints by itself, on its apply connection",
    "writable_schema": "it can damage the file",
}
"""What the node decides, and why: may be read, or set to what it is already."""

_UNREADABLE: Final = frozenset({"case_sensitive_like", "incremental_vacuum", "optimize", "wal_checkpoint"})


class Rule(enum.Enum):
    """What is to be done with a pragma."""

    READ = "read"
    STATE = "state"
    WRITE = "write"
    LOCAL = "local"
    IF_SO_ALREADY = "if so already"
    REFUSE = "refuse"


def rule(name: str, value: str | None) -> Rule:
    """What is to be done with `PRAGMA name` (lower case) or `PRAGMA name = value`."""
    if name in STATE:
        return Rule.STATE
    if name in READS:
        return Rule.READ
    if name in REPLICATED:
        return Rule.READ if value is None else Rule.WRITE
    if name in HARMLESS:
        return Rule.LOCAL
    if name in NODE_OWNED and name not in _UNREADABLE:
        return Rule.READ if value is None else Rule.IF_SO_ALREADY
    return Rule.REFUSE


def refusal(name: str, value: str | None) -> str:
    """Why, for the person who wrote it."""
    what = f"PRAGMA {name}" + ("" if value is None else f" = {value}")
    reason = NODE_OWNED.get(name, "it is not known to be safe in a replicated database")
    return f"{what} is refused: {reason}."


def boolean(value: str) -> int | None:
    """A boolean pragma value as SQLite reads it (1, on, yes, true...); None where it is none."""
    folded = value.strip().lower()
    if folded in {"on", "yes", "true"}:
        return 1
    if folded in {"off", "no", "false"}:
        return 0
    try:
        return int(int(folded, 0) != 0)
    except ValueError:
        return None
