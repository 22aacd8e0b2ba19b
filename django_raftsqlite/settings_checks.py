"""System checks that look at the settings and the files alone: of one alias, or of all of them together."""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import apsw
import django
from django.conf import settings
from django.core import checks

from . import certificate_checks
from .access import TOKEN_MINIMUM
from .configuration import Configuration
from .node import roster
from .node.api import NodeConfig
from .sqlite.classify import classify

NEWEST_TESTED_DJANGO = (6, 1)

NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "gfs2", "lustre", "ncpfs", "nfs"}
    | {"nfs4", "ocfs2", "smb3", "smbfs", "vboxsf", "virtiofs"}
)
MOUNTS = Path("/proc/self/mounts")
_OCTAL = re.compile(r"\\([0-7]{3})")  # how it writes a space in a path

Messages = Iterable[checks.CheckMessage]


def of_alias(
    alias: str, settings_dict: Mapping[str, Any], configuration: Configuration
) -> Iterator[checks.CheckMessage]:
    """Warnings about one alias, whose settings have no error of their own."""
    node = configuration.node
    yield from _django_version()
    yield from _members(alias, node)
    yield from _files(alias, node)
    yield from _timeouts(alias, node)
    yield from _file_system(alias, node)
    yield from _atomic_requests(alias, settings_dict, configuration)
    yield from _init_command(alias, configuration)
    yield from certificate_checks.of_certificate(alias, node)


def of_all(configurations: Mapping[str, Configuration]) -> Messages:
    """What is wrong between aliases, whose own settings have no errors; and with what is for all of them."""
    files: dict[str, str] = {}
    for alias, configuration in configurations.items():
        name = os.path.realpath(configuration.node.name)
        first = files.setdefault(name, alias)
        if first != alias:
            yield from _shared(first, alias, configurations[first].node, configuration.node)
    yield from _token()


def of_deployment(configurations: Mapping[str, Configuration]) -> Messages:
    """What is well for development, and not for production."""
    secrets = [
        (f'DATABASES["{alias}"]["OPTIONS"]["secret"]', secret)
        for alias, each in configurations.items()
        for secret in (each.node.secret, each.node.second_secret)
    ]
    token = getattr(settings, "RAFTSQLITE_STATUS_TOKEN", None)
    if isinstance(token, str):
        secrets.append(("RAFTSQLITE_STATUS_TOKEN", token))
    sources = list(_settings_sources())
    for where, secret in secrets:
        for path, text in sources:
            if secret and secret in text:
                yield checks.Warning(
                    f"{where} stands in {path}: whoever reads the code can join the group, or look into it.",
                    hint="Read it from the environment (RAFTSQLITE_<ALIAS> for the options), or from a file that is "
                    "not part of the code.",
                    id="raftsqlite.W007",
                )
    for alias, each in configurations.items():
        yield from certificate_checks.of_privacy(alias, each.node, each.secret_files)


def _django_version() -> Messages:
    if django.VERSION[:2] > NEWEST_TESTED_DJANGO:
        yield checks.Warning(
            f"Django {django.get_version()} is newer than the newest version this backend was tested with "
            f"({'.'.join(map(str, NEWEST_TESTED_DJANGO))}).",
            hint="Look for a newer django-raftsqlite, and run your own tests before you deploy.",
            id="raftsqlite.W002",
        )


def _members(alias: str, node: NodeConfig) -> Messages:
    known = roster.read(node.folder)
    count = len(node.peers) or (node.discovery.expect or 0 if node.discovery is not None else 0)
    if known is None and count and count % 2 == 0:
        yield checks.Warning(
            f'DATABASES["{alias}"]["OPTIONS"]["peers"] has {count} members, which survive the loss of no more nodes '
            f"than {count - 1} would.",
            hint="Use 3 or 5 members.",
            id="raftsqlite.W001",
        )
    if known is not None and node.peers not in ((), (node.address,)) and known.voters != set(node.peers):
        yield checks.Warning(
            f'DATABASES["{alias}"]["OPTIONS"]["peers"] names {_listed(node.peers)}, but the voters of the group are '
            f"{_listed(known.voters)}. The group knows its members by itself; this setting only begins a new one.",
            hint="Write the group's voters there, so that nobody is misled. They are changed by manage.py raft add "
            "and manage.py raft remove.",
            id="raftsqlite.W005",
        )


def _listed(addresses: Iterable[str]) -> str:
    return ", ".join(sorted(addresses)) or "nobody"


def _files(alias: str, node: NodeConfig) -> Messages:
    for path in (node.name, node.folder):
        try:
            found = path.stat()
        except OSError:
            continue
        uid = os.geteuid()
        needed = os.R_OK | os.W_OK | (os.X_OK if stat.S_ISDIR(found.st_mode) else 0)
        if not os.access(path, needed):
            yield checks.Warning(
                f'DATABASES["{alias}"]["NAME"]: {path} belongs to uid {found.st_uid} with mode '
                f"{stat.S_IMODE(found.st_mode):#o}; uid {uid}, which runs this process, may not read and write it.",
                hint='Run every process of the node as one user, or share a group and set OPTIONS["mode"] to "0660".',
                id="raftsqlite.W003",
            )
        elif found.st_uid != uid and not node.mode & 0o060:
            yield checks.Warning(
                f'DATABASES["{alias}"]["NAME"]: {path} belongs to uid {found.st_uid}, but this process runs as '
                f"uid {uid}. Files that it makes are then closed to the others.",
                hint='Run every process of the node as one user, or share a group and set OPTIONS["mode"] to "0660".',
                id="raftsqlite.W003",
            )


def _timeouts(alias: str, node: NodeConfig) -> Messages:
    # An election starts at most two election timeouts after the leader's last word, and takes about one more.
    if not node.closed and node.timeout < 3 * node.election_timeout:
        yield checks.Warning(
            f'DATABASES["{alias}"]["OPTIONS"]["timeout"] is {node.timeout:g} s, less than three times the '
            f"election_timeout of {node.election_timeout:g} s: writes fail whenever the leader changes.",
            hint=f"Write a timeout of at least {3 * node.election_timeout:g}.",
            id="raftsqlite.W004",
        )


def _file_system(alias: str, node: NodeConfig) -> Messages:
    kind = file_system_of(node.name.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        yield checks.Warning(
            f'DATABASES["{alias}"]["NAME"]: {node.name} is on a network file system ({kind}). SQLite needs locks and '
            "shared memory that these do not give reliably, and the node an fsync that means it: data may be lost.",
            hint="Write a path on a local disk. The group keeps the copies on other machines.",
            id="raftsqlite.W009",
        )


def file_system_of(folder: Path) -> str | None:
    """The type of the file system that holds a folder, such as "ext4"; None where the system does not tell."""
    try:
        mounts = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    path = os.path.realpath(folder)
    longest, found = 0, None
    for line in mounts:
        _, target, kind, *_ = line.split(" ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), target)
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # a later mount hides an earlier one at the same place
            longest, found = len(point), kind
    return found


def _atomic_requests(alias: str, settings_dict: Mapping[str, Any], configuration: Configuration) -> Messages:
    if settings_dict.get("ATOMIC_REQUESTS") and configuration.transaction_mode in {"IMMEDIATE", "EXCLUSIVE"}:
        yield checks.Warning(
            f'DATABASES["{alias}"] has ATOMIC_REQUESTS and OPTIONS["transaction_mode"] = '
            f'"{configuration.transaction_mode}": each request, also one that only reads, waits for the write lease '
            "of the group, and holds it to its end.",
            hint='Leave "transaction_mode" out: a transaction takes the lease at its first write. Or set '
            "ATOMIC_REQUESTS to False and use atomic() in the views that write.",
            id="raftsqlite.W008",
        )


def _init_command(alias: str, configuration: Configuration) -> Messages:
    # What may use tables is left to the node, which has them.
    commands = [each for each in configuration.init_commands if each.lower().startswith("pragma")]
    if not commands:
        return
    with tempfile.TemporaryDirectory() as folder:
        connection = apsw.Connection(f"{folder}/empty.sqlite3")
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()  # as the node's own is
            for command in commands:
                try:
                    classify(connection, command, frozenset())
                except Exception as error:
                    yield checks.Error(
                        f'DATABASES["{alias}"]["OPTIONS"]["init_command"] has {command!r}, which every connection '
                        f"would fail with: {error}",
                        hint="Remove it. What PRAGMAs may be said, and what the node decides by itself, is on the "
                        'page "Compatibility".',
                        id="raftsqlite.E009",
                    )
        finally:
            connection.close()


def _shared(first: str, second: str, one: NodeConfig, other: NodeConfig) -> Messages:
    if replace(one, observers=(), name=other.name) != replace(other, observers=()):
        yield checks.Error(
            f'DATABASES["{first}"] and DATABASES["{second}"] have one NAME, {other.name}, and different OPTIONS: '
            "which of them hold for their one node depends on which alias is used first.",
            hint="Write different files for different databases. For one database with two levels of reads, let all "
            'other options be equal ("reads", "max_staleness", "transaction_mode" and "init_command" may differ).',
            id="raftsqlite.E010",
        )
    else:
        yield checks.Warning(
            f'DATABASES["{first}"] and DATABASES["{second}"] have one NAME, {other.name}: they are one database with '
            "two names, and transactions of one wait for those of the other.",
            hint="Write different files, or silence this check if you mean it.",
            id="raftsqlite.W006",
        )


def _token() -> Messages:
    value = getattr(settings, "RAFTSQLITE_STATUS_TOKEN", None)
    given = [value] if isinstance(value, str) else value or []
    if not isinstance(given, list | tuple) or any(
        not isinstance(token, str) or 0 < len(token) < TOKEN_MINIMUM for token in given
    ):
        yield checks.Error(
            f"RAFTSQLITE_STATUS_TOKEN is not a text of at least {TOKEN_MINIMUM} characters, nor a list of such "
            "texts: what is shorter opens nothing.",
            hint='Write what python -c "import secrets; print(secrets.token_urlsafe(32))" prints, or leave it out.',
            id="raftsqlite.E011",
        )


def _settings_sources() -> Iterator[tuple[Path, str]]:
    """The settings module and the modules beside it."""
    name = getattr(settings, "SETTINGS_MODULE", None)
    module = sys.modules.get(name) if name else None
    if not isinstance(module, ModuleType) or not getattr(module, "__file__", None):
        return
    folder = Path(str(module.__file__)).resolve().parent
    seen = set()
    for each in list(sys.modules.values()):
        file = getattr(each, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if path.parent == folder and path not in seen:
            seen.add(path)
            try:
                yield path, path.read_text(encoding="utf-8")
            except (OSError, ValueError):
                continue
