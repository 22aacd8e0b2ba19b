"""How SQLite's failures are told apart: the statement's own error, or a fault of this node."""

from __future__ import annotations


class StatementError(Exception):
    """A statement failed in a way that its author is told about.

    ``code`` (int) is SQLite's extended result code, or 0 where the failure is not SQLite's (a parameter
    that does not bind); ``kind`` says which PEP 249 class the driver raises for it when ``code`` is 0:
    ``"sqlite"``, ``"binding"``, ``"unicode"``, ``"overflow"``, ``"function"`` or ``"unsupported"``.
    """

    def __init__(self, code: int, message: str, kind: str = "sqlite") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.kind = kind


class NodeFault(Exception):
    """This node cannot go on applying: its disk, its memory or its file failed, not the statement.

    ``retry`` is true where the same entry may be tried again at once (BUSY, INTERRUPT).
    See pitfall "its error is its result": only an allow-list of codes is a result.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class MalformedEntry(NodeFault):
    """A committed log entry cannot be decoded: another version wrote it, or the log is damaged."""
