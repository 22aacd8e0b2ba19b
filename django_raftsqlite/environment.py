"""``RAFTSQLITE_<ALIAS>``: JSON merged over ``DATABASES[alias]``, so that one code base runs as any node."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .wording import kind, suggest

_SETTINGS = frozenset(
    {"NAME", "OPTIONS", "TEST", "ATOMIC_REQUESTS", "AUTOCOMMIT", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS", "TIME_ZONE"}
)

# A key of our own in a settings dictionary; Django's copies of it (threads, test workers) carry it along.
MERGED = "_RAFTSQLITE_MERGED"


def environment_variable(alias: str) -> str:
    """``"default"`` -> ``"RAFTSQLITE_DEFAULT"``; what is not a letter or digit becomes ``_``."""
    return "RAFTSQLITE_" + re.sub(r"[^A-Za-z0-9]", "_", alias).upper()


def merge_environment(alias: str, settings_dict: MutableMapping[str, Any]) -> None:
    """Merge the JSON object in ``RAFTSQLITE_<ALIAS>`` over ``settings_dict``, in place and once.

    Dictionaries are merged key by key; everything else replaces what the settings say, and null unsets an
    option. Raises ImproperlyConfigured that names the variable.
    """
    # Once: a test runner changes NAME in the same dictionary, and a thread that connects later must see that.
    if MERGED in settings_dict:
        return
    merge(settings_dict, read_environment(alias))
    settings_dict[MERGED] = True


def read_environment(alias: str) -> Mapping[str, Any]:
    """What ``RAFTSQLITE_<ALIAS>`` says; empty when it is not set. Raises ImproperlyConfigured."""
    variable = environment_variable(alias)
    text = os.environ.get(variable)
    return {} if text is None else _parse(variable, text)


def _parse(variable: str, text: str) -> Mapping[str, Any]:
    example = f"""{variable}='{{"NAME": "/srv/node1/db.sqlite3", "OPTIONS": {{"node": "127.0.0.1:7101"}}}}'"""
    try:
        value = json.loads(text)
    except ValueError as error:
        # Not the text itself: it may hold the secret.
        raise ImproperlyConfigured(f"{variable} is not JSON ({error}). Write an object such as {example}.") from error
    if not isinstance(value, dict):
        raise ImproperlyConfigured(f"{variable} holds {kind(value)}. Write an object such as {example}.")
    for key in value:
        if key not in _SETTINGS:
            raise ImproperlyConfigured(
                f"{variable} has the unknown key {key!r}.{suggest(key, _SETTINGS)} Write an object such as {example}."
            )
    for key in ("OPTIONS", "TEST"):
        if not isinstance(value.get(key, {}), dict):
            raise ImproperlyConfigured(
                f'{variable}: "{key}" is {kind(value[key])}. Write an object such as {example}.'
            )
    return value


def merge(target: MutableMapping[str, Any], source: Mapping[str, Any]) -> None:
    """Merge ``source`` over ``target`` in place, dictionaries key by key."""
    for key, value in source.items():
        present = target.get(key)
        if isinstance(value, dict) and isinstance(present, Mapping):
            merged = dict(present)
            merge(merged, value)
            target[key] = merged
        else:
            target[key] = value
