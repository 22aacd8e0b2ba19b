"""How the connections of an alias behave: their reads, their transactions, and what each begins with."""

from __future__ import annotations

from typing import cast

from django.core.exceptions import ImproperlyConfigured

from ..consistency import LEVELS
from ..dbapi.freshness import Level
from ..functions import load_functions, register_django_functions
from ..sqlite.functions import Registrar
from ..wording import kind, listed, suggest
from .given import Given

TRANSACTION_MODES = ("DEFERRED", "IMMEDIATE", "EXCLUSIVE")


def read_level(given: Given) -> Level:
    """The read level outside of any ``with reads(...)``."""
    value = given.option("reads")
    if value is None:
        return "local"
    if value not in LEVELS:
        given.problem("E007", "reads", f"is {value!r}.{suggest(value, LEVELS)}", f"Write one of {listed(LEVELS)}.")
        return "local"
    return cast("Level", value)


def read_transaction_mode(given: Given) -> str | None:
    """What BEGIN is followed by; None for nothing."""
    value = given.option("transaction_mode")
    if value is None:
        return None
    if not isinstance(value, str) or value.upper() not in TRANSACTION_MODES:
        given.problem(
            "E007",
            "transaction_mode",
            f"is {value!r}.{suggest(str(value).upper(), TRANSACTION_MODES)}",
            f"Write one of {listed(TRANSACTION_MODES)}, or None.",
        )
        return None
    return value.upper()


def read_init_commands(given: Given) -> tuple[str, ...]:
    """The statements of ``init_command``."""
    value = given.option("init_command")
    if value is None:
        return ()
    if not isinstance(value, str):
        given.problem(
            "E007",
            "init_command",
            f"is {kind(value)}.",
            'Write SQL text, statements separated by ";", such as "PRAGMA cache_size=-20000".',
        )
        return ()
    return tuple(command for part in value.split(";") if (command := part.strip()))


def read_registrars(given: Given) -> tuple[Registrar, ...]:
    """What registers SQL functions on every connection: Django's, then the project's."""
    path = given.option("functions")
    if path is None:
        return (register_django_functions,)
    try:
        return (register_django_functions, load_functions(path))
    except ImproperlyConfigured as error:
        given.problem(
            "E006",
            "functions",
            f"is {path!r}: {error}.",
            'Write the dotted path of a callable that takes a connection, such as "shop.sql.register".',
        )
        return (register_django_functions,)
