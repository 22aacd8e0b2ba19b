"""Values on their way in (adapters, the author's check of parameters) and out (converters by declared type)."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..exceptions import ProgrammingError
from ..sqlite.entry import Row, SQLiteValue

Adapter = Callable[[Any], Any]
Converter = Callable[[Any], Any]
Columns = tuple[tuple[str, str | None], ...]
Description = tuple[tuple[str, None, None, None, None, None, None], ...]
RowsConverter = Callable[[list[Row]], Iterable[tuple[Any, ...]]]

# PEP 249's constructors and type objects. SQLite's columns have no fixed type, so the objects are plain.
Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = memoryview
STRING = str
BINARY = memoryview
NUMBER = float
DATETIME = datetime.datetime
ROWID = int

DateFromTicks = datetime.date.fromtimestamp
TimestampFromTicks = datetime.datetime.fromtimestamp


def TimeFromTicks(ticks: float) -> datetime.time:
    """The local time of day of ``ticks`` seconds since the epoch."""
    return datetime.time(*time.localtime(ticks)[3:6])


_LARGEST = 2**63 - 1
_SMALLEST = -(2**63)
_NATIVE = (str, int, float, bytes, bytearray, memoryview)
_PLAIN = frozenset((type(None), int, float, str, bytes))

_adapters: dict[type, Adapter] = {}
_native_adapted: set[type] = set()  # those that APSW would bind without asking for the adapter
_converters: dict[str, Converter] = {}
_plans: dict[Columns, tuple[Description | None, RowsConverter | None]] = {}
_PLANS_KEPT = 2048


def register_adapter(type_: type, adapter: Adapter) -> None:
    """Bind values of exactly this type as what ``adapter(value)`` gives.

    The table is this driver's own: nothing that :mod:`sqlite3` does elsewhere in the process changes.
    """
    _adapters[type_] = adapter
    if issubclass(type_, _NATIVE):
        _native_adapted.add(type_)


def register_converter(typename: str, converter: Converter) -> None:
    """Give columns declared ``typename`` (first word, any case), or named ``"name [typename]"``, to ``converter``.

    Unlike :mod:`sqlite3`'s, a converter gets SQLite's own value (int, float, str or bytes), never NULL. Wrap a
    parser of text in :func:`text_converter`.
    """
    _converters[typename.casefold()] = converter
    _plans.clear()


def text_converter(parse: Callable[[str], Any]) -> Converter:
    """A converter from a parser of text that does not fail on the other storage classes.

    A number is parsed as its text, as :mod:`sqlite3` does; a blob that is not UTF-8 has no text and comes as
    it is, since a column's declared type promises nothing in SQLite.
    """

    def convert(value: SQLiteValue) -> Any:
        if isinstance(value, str):
            return parse(value)
        if isinstance(value, bytes):
            try:
                return parse(value.decode())
            except UnicodeDecodeError:
                return value
        return parse(str(value))

    return convert


def adapt(value: Any) -> SQLiteValue:
    """The SQLite value that ``value`` binds as, exactly: what is sent to all nodes binds on all nodes.

    Raises ProgrammingError (unsupported type), OverflowError (beyond 64 bits) and UnicodeEncodeError (lone
    surrogates), as :mod:`sqlite3` does.
    """
    kind = type(value)
    if kind not in _PLAIN:
        adapter = _adapters.get(kind)
        if adapter is not None:
            value = adapter(value)
        value = _native(value, kind)
        kind = type(value)
    if kind is int:
        if not _SMALLEST <= value <= _LARGEST:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
    elif kind is str and not value.isascii():
        value.encode()
    return value  # type: ignore[no-any-return]


def _native(value: Any, kind: type) -> SQLiteValue:
    if value is None:
        return None
    # The subclass's own __str__, __int__ or __float__ must not be asked: SQLite binds the value itself.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    try:
        return memoryview(value).tobytes()
    except TypeError:
        raise ProgrammingError(f"Error binding parameter: type '{kind.__name__}' is not supported") from None


def adapt_all(parameters: Any) -> tuple[SQLiteValue, ...] | dict[str, SQLiteValue] | None:
    """All parameters of a statement as SQLite values, in a container of our own.

    A value of a mapping that does not adapt is left out: only if the statement uses its name is it an error,
    which :func:`named` then raises.
    """
    if parameters is None or parameters == ():
        return None
    if type(parameters) in (tuple, list):  # what Django gives; the others take several times as long to tell apart
        return tuple(map(adapt, parameters))
    if isinstance(parameters, Mapping):
        adapted = {}
        for name, value in parameters.items():
            with contextlib.suppress(ProgrammingError, OverflowError, UnicodeEncodeError):
                adapted[name] = adapt(value)
        return adapted
    if isinstance(parameters, Sequence) or hasattr(parameters, "__getitem__"):
        return tuple(map(adapt, parameters))
    raise ProgrammingError("parameters are of unsupported type")


def named(parameters: Any, name: str) -> SQLiteValue:
    """The value of the placeholder ``:name``; raises what :func:`adapt` raises for it."""
    try:
        value = parameters[name]
    except LookupError:
        raise ProgrammingError(f"You did not supply a value for binding parameter :{name}.") from None
    return adapt(value)


def bindable(parameters: Any) -> Any:
    """What APSW may be given for a read: ``parameters`` itself where it binds them as :func:`adapt` would."""
    kind = type(parameters)
    if kind is tuple or kind is list:
        if not _native_adapted or _native_adapted.isdisjoint(map(type, parameters)):
            return parameters
    elif kind is dict and (not _native_adapted or _native_adapted.isdisjoint(map(type, parameters.values()))):
        return parameters
    return adapt_all(parameters)


def convert_binding(_cursor: object, _number: int, value: Any) -> SQLiteValue:
    """APSW's hook for the types that it does not bind by itself."""
    return adapt(value)


def plan(columns: Columns) -> tuple[Description | None, RowsConverter | None]:
    """PEP 249's description of a result, and how a batch of its rows is converted (None: as they are).

    Computed once for all statements with these columns. A type in brackets after the name wins over the
    declared one, and is not part of the name.
    """
    known = _plans.get(columns)
    if known is None:
        known = _plan(columns)
        if len(_plans) >= _PLANS_KEPT:
            _plans.clear()
        _plans[columns] = known
    return known


_BRACKETED = re.compile(r"\[([^\]]*)\]")
_FIRST_WORD = re.compile(r"[^ (]*")


def _plan(columns: Columns) -> tuple[Description | None, RowsConverter | None]:
    if not columns:
        return None, None
    description = tuple(
        (name.split("[", 1)[0].removesuffix(" ") if "[" in name else name, None, None, None, None, None, None)
        for name, _ in columns
    )
    chosen = [(index, found) for index, column in enumerate(columns) if (found := _converter(*column)) is not None]
    return description, _rows_converter(chosen) if chosen else None


def _converter(name: str, decltype: str | None) -> Converter | None:
    bracketed = _BRACKETED.search(name)
    if bracketed is not None and (found := _converters.get(bracketed[1].casefold())) is not None:
        return found
    first = _FIRST_WORD.match(decltype or "")
    return _converters.get(first[0].casefold()) if first is not None else None


def _rows_converter(chosen: Sequence[tuple[int, Converter]]) -> RowsConverter:
    def convert(rows: list[Row]) -> Iterable[tuple[Any, ...]]:
        # By column: all but the converters themselves then runs in C.
        columns: list[Any] = list(zip(*rows, strict=True))
        if columns:
            for index, converter in chosen:
                columns[index] = [None if value is None else converter(value) for value in columns[index]]
        return zip(*columns, strict=True)

    return convert


def _parse_date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def _parse_time(text: str) -> datetime.time | None:
    try:
        return datetime.time.fromisoformat(text)
    except ValueError:
        return None


def _parse_datetime(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def _parse_bool(value: SQLiteValue) -> bool:
    return value in {1, "1", b"1"}


register_adapter(decimal.Decimal, str)
register_adapter(datetime.date, datetime.date.isoformat)
register_adapter(datetime.datetime, lambda value: value.isoformat(" "))
register_converter("bool", _parse_bool)
register_converter("date", text_converter(_parse_date))
register_converter("time", text_converter(_parse_time))
register_converter("datetime", text_converter(_parse_datetime))
register_converter("timestamp", text_converter(_parse_datetime))
