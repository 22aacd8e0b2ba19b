"""``DATABASES[alias]`` and ``RAFTSQLITE_<ALIAS>`` into a checked :class:`Configuration`.

Every wrong value becomes a :class:`Problem` that names the full settings path, what was found and what to write:
:func:`configure` raises the first one as ImproperlyConfigured, the system checks show them all.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .commands import is_short_lived
from .dbapi.freshness import Freshness
from .environment import environment_variable, merge_environment
from .node.api import NodeConfig
from .options.archive import read_archive
from .options.connections import read_init_commands, read_level, read_registrars, read_transaction_mode
from .options.files import read_mode, read_name
from .options.given import Given, Problem
from .options.members import LOCALHOST, read_discovery, read_join, read_learner, read_members
from .options.security import check_security, read_credentials
from .options.values import read_bytes, read_entries, read_host, read_on_divergence, read_readmit, read_seconds
from .signals import Sender

# A key of our own in a settings dictionary; Django's copies of it (threads, test workers) carry it along.
TEST = "_RAFTSQLITE_TEST"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that one alias says: its node, how its connections behave, and the files its secrets were read from."""

    node: NodeConfig
    reads: Freshness
    transaction_mode: str | None
    init_commands: tuple[str, ...]
    secret_files: tuple[Path, ...] = ()


def configure(alias: str, settings_dict: MutableMapping[str, Any]) -> Configuration:
    """Read the settings of ``alias``, with its environment variable merged in.

    ``settings_dict`` is Django's ``DATABASES[alias]`` with its defaults filled in. Raises ImproperlyConfigured.
    """
    merge_environment(alias, settings_dict)
    given = Given(alias, settings_dict)
    configuration = _read(given)
    if given.problems:
        raise ImproperlyConfigured(str(given.problems[0]))
    return configuration


def find_problems(alias: str, settings_dict: MutableMapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with the settings of ``alias``; empty when :func:`configure` would succeed."""
    try:
        merge_environment(alias, settings_dict)
    except ImproperlyConfigured as error:
        variable = environment_variable(alias)
        return [Problem("E008", variable, str(error).removeprefix(f"{variable} "), "")]
    given = Given(alias, settings_dict)
    _read(given)
    return given.problems


def _read(given: Given) -> Configuration:
    given.check_keys()
    testing = bool(given.database.get(TEST))
    address, peers = read_members(given)
    join, learner = read_join(given, address), read_learner(given)
    secrets, tls = read_credentials(given)
    discovery = read_discovery(given, tls is not None)
    secret, second_secret = (*(secrets.found if secrets else ()), None, None)[:2]
    check_security(given, address, (*peers, *join), secret, tls, sought=discovery is not None)
    if testing:
        # A test database is a group of its own: no peers, no ports, nothing fsynced, and a TestCase may
        # hold its transaction for minutes.
        address, peers, join, secret, second_secret, tls = LOCALHOST, (LOCALHOST,), (), None, None, None
        discovery = None
    lease_timeout = read_seconds(given, "lease_timeout")
    node = NodeConfig(
        name=read_name(given),
        address=address,
        peers=peers,
        secret=secret,
        tls=tls,
        timeout=read_seconds(given, "timeout"),
        election_timeout=read_seconds(given, "election_timeout"),
        fixed_election_timeout=given.option("election_timeout") is not None,
        apply_timeout=read_seconds(given, "apply_timeout"),
        max_transaction_bytes=read_bytes(given, "max_transaction_bytes"),
        wal_limit=read_bytes(given, "wal_limit"),
        log_entries=read_entries(given, "log_entries"),
        log_bytes=read_bytes(given, "log_bytes"),
        snapshot_rate=read_bytes(given, "snapshot_rate"),
        lease_timeout=None if testing else lease_timeout,
        mode=read_mode(given),
        host=True if testing else read_host(given),
        durable=not testing,
        registrars=read_registrars(given),
        on_divergence=read_on_divergence(given),
        archive=None if testing else read_archive(given),
        observers=() if testing else (Sender(given.alias),),
        reluctant=not testing and is_short_lived(sys.argv),
        join=join,
        learner=learner and not testing,
        discovery=discovery,
        readmit=read_readmit(given),
        second_secret=second_secret,
    )
    max_staleness = read_seconds(given, "max_staleness")
    return Configuration(
        node,
        Freshness(read_level(given), max_staleness),
        read_transaction_mode(given),
        read_init_commands(given),
        tuple(secrets.files) if secrets else (),
    )
