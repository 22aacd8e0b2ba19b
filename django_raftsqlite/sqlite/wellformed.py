"""What another process wants in the log, looked at before it is there.

An item that cannot be decoded would stop every node, now and at each start.
"""

from __future__ import annotations

from collections.abc import Iterable

from .entry import ItemKind, RequestId, Transaction, decode_transaction
from .errors import MalformedEntry
from .parts import Part, Parted, decode_part, decode_parted
from .pragmas import STATE
from .restoring import decode_restore

_NAMES = frozenset({ItemKind.OPEN_ORIGIN, ItemKind.CLOSE_ORIGIN, ItemKind.VERIFY})
_VALUES = (type(None), int, float, str, bytes)
_LARGEST = 2**63


def check_item(kind: ItemKind, payload: object, name: object, solo: object) -> None:
    """Raises ValueError for what no process of this version sends as the request ``name`` (24 bytes).

    Not about what the SQL does: who may send requests may run any.
    """
    if type(payload) is not bytes:
        raise ValueError("an item's payload is bytes")
    if kind in _NAMES:
        if len(payload) != 16:
            raise ValueError(f"{kind.name} names something by 16 bytes")
        return
    if type(name) is not bytes or type(solo) is not bool:
        raise ValueError("a request has an id, and is solo or not")
    try:
        found = _request(kind, payload, solo)
        _check_request(found)
    except (MalformedEntry, TypeError) as error:
        raise ValueError(str(error)) from error
    if found.to_bytes() != name:
        raise ValueError("a request's id is another one than its content's")


def _request(kind: ItemKind, payload: bytes, solo: bool) -> RequestId:
    """The id in the payload, all of whose rest is sound."""
    match kind:
        case ItemKind.TRANSACTION:
            transaction = decode_transaction(payload)
            _check_transaction(transaction)
            return transaction.request
        case ItemKind.PART:
            part: Part = decode_part(payload)
            _check_numbers((part.low_water, part.sequence, part.number))
            if type(part.data) is not bytes:
                raise ValueError("a part is bytes")
            return part.request
        case ItemKind.PARTED_TRANSACTION:
            parted: Parted = decode_parted(payload)
            _check_numbers((parted.low_water, parted.size, parted.pieces))
            if type(parted.sha256) is not bytes:
                raise ValueError("a hash is bytes")
            return parted.request
        case ItemKind.RESTORE:
            if not solo:
                raise ValueError("a restore is solo")
            return decode_restore(payload).request
    raise ValueError(f"{kind.name} is for the leader alone to propose")


def _check_numbers(numbers: Iterable[object]) -> None:
    if any(type(number) is not int or not 0 <= number < _LARGEST for number in numbers):
        raise ValueError("a number is out of range")


def _check_request(request: RequestId) -> None:
    if type(request.origin) is not bytes or len(request.origin) != 16:
        raise ValueError("an origin has 16 bytes")
    _check_numbers((request.sequence,))


def _check_transaction(transaction: Transaction) -> None:
    _check_numbers((transaction.low_water,))
    base, pragmas = transaction.base, transaction.pragmas
    if base is not None:
        _check_numbers((base.version,))
        if (type(base.lineage), type(base.last)) != (bytes, bytes):
            raise ValueError("a base names a lineage and a request")
    if type(pragmas) is not dict or any(
        name not in STATE or type(value) is not int or not 0 <= value < _LARGEST for name, value in pragmas.items()
    ):
        raise ValueError("a pragma is unknown, or its value")
    if type(transaction.solo) is not bool:
        raise ValueError("a transaction is solo or not")
    for sql, parameters, clock, seed, expect in transaction.statements:
        if type(sql) is not str or type(clock) is not int or type(seed) is not int:
            raise ValueError("a statement is SQL, a clock and a seed")
        if not -_LARGEST <= clock < _LARGEST or not 0 <= seed < _LARGEST:
            raise ValueError("a clock or a seed is out of range")
        if expect is not None and type(expect) is not bytes:
            raise ValueError("what a statement gave is told by a digest")
        _check_parameters(parameters)


def _check_parameters(parameters: object) -> None:
    if parameters is None:
        return
    if isinstance(parameters, dict):
        if not all(type(name) is str for name in parameters):
            raise ValueError("a parameter's name is text")
        values: Iterable[object] = parameters.values()
    elif isinstance(parameters, list):
        values = parameters
    else:
        raise ValueError("parameters are a list or a dictionary")
    for value in values:
        if not isinstance(value, _VALUES) or (isinstance(value, int) and not -_LARGEST <= value < _LARGEST):
            raise ValueError("a parameter is no value of SQLite's")
