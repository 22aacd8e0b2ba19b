"""How SQLite's failures are told apart: the statement's own error, or a fault of this node."""

from __future__ import annotations

import re

import apsw


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
    "Its error is its result" holds for an allow-list of codes only.
    """

    def __init__(self, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.retry = retry


class MalformedEntry(NodeFault):
    """A committed log entry cannot be decoded: another version wrote it, or the log is damaged."""


class Distrust(NodeFault):
    """The database file does not hold what the log led to, or may not: nothing may be read from it or applied to
    it.
    """


class ForeignWrite(Distrust):
    """Something else wrote to the database file, or put another file in its place."""


class Damaged(Distrust):
    """SQLite finds the database file damaged."""


MISSING = ("no such function: ", "no such collation sequence: ", "no such module: ")
"""How SQLite's message begins when a name is missing that registrars, not the log, must provide."""


def convert_error(exc: BaseException) -> StatementError:
    """What ``exc``, raised by running a statement through APSW, tells the statement's author.

    MemoryError and what is no Exception (KeyboardInterrupt...) are raised again: they are nobody's answer.
    """
    if isinstance(exc, StatementError):
        return exc
    if isinstance(exc, MemoryError) or not isinstance(exc, Exception):
        raise exc
    error = _converted(exc)
    error.__cause__ = exc
    return error


def _converted(exc: Exception) -> StatementError:
    # First: a user function may raise what APSW itself raises for a parameter.
    function = user_function(exc)
    if function is not None:
        message = f"user-defined function {function} raised {_described(exc)}"
        return StatementError(apsw.SQLITE_ERROR, message, "function")
    if isinstance(exc, apsw.Error):
        code = getattr(exc, "extendedresult", None)
        return StatementError(0, str(exc), "binding") if code is None else StatementError(code, str(exc))
    for kind, classes in _KINDS.items():
        if isinstance(exc, classes):
            return StatementError(0, f"no value for parameter {exc}" if isinstance(exc, KeyError) else str(exc), kind)
    return StatementError(apsw.SQLITE_ERROR, _described(exc), "function")


_KINDS: dict[str, tuple[type[Exception], ...]] = {
    "overflow": (OverflowError,),
    "unicode": (UnicodeError,),
    "binding": (TypeError, KeyError),
}


def user_function(exc: BaseException) -> str | None:
    """The name of the SQL function or collation that raised ``exc``; None when none did.

    APSW puts a frame of its own between the statement and the function (`user-defined-scalar-regexp`).
    """
    traceback = exc.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found = _FRAME.match(code.co_name) if code.co_filename.startswith("src/") else None
        if found is not None:
            return found.group(1) or "window function or collation"
        traceback = traceback.tb_next
    return None


_FRAME = re.compile(r"user-defined-(?:scalar|aggregate(?:-step|-final)?)-(.+)|window-function-|Collation_callback")


def _described(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"
