"""The SQL functions and collations of every connection: Django's own, and those of ``OPTIONS["functions"]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.sqlite3._functions import register  # type: ignore[import-untyped]
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from .sqlite.functions import FunctionRegistry, Registrar


def register_django_functions(registry: FunctionRegistry) -> None:
    """What Django's sqlite3 backend registers: date arithmetic, REGEXP, statistics, and so on."""
    register(registry)


def load_functions(path: object) -> Registrar:
    """The callable at a dotted path. Raises ImproperlyConfigured that says what is wrong with it, in words."""
    if not isinstance(path, str):
        raise ImproperlyConfigured(f"a {type(path).__name__} is not a dotted path")
    try:
        function = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"it cannot be imported ({error})") from error
    if not callable(function):
        raise ImproperlyConfigured(f"it is a {type(function).__name__}, which cannot be called")
    registrar: Registrar = function
    return registrar
