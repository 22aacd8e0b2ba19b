"""``DATABASES[alias]`` and ``RAFTSQLITE_<ALIAS>`` into a checked :class:`Configuration`.

Every wrong value becomes a :class:`Problem` that names the full settings path, what was found and what to write:
:func:`configure` raises the first one as ImproperlyConfigured, the system checks show them all.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from .addresses import is_loopback, parse_address
from .backups.places import OpenStorage
from .commands import is_short_lived
from .consistency import LEVELS
from .credentials import TLS, Secrets
from .dbapi.freshness import Freshness, Level
from .discovery import Discovery, Misspelt, is_url
from .discovery import parse as parse_discovery
from .environment import environment_variable, merge_environment
from .functions import load_functions, register_django_functions
from .node.api import ArchiveConfig, NodeConfig, TLSFiles
from .signals import Sender
from .sqlite.functions import Registrar
from .wording import kind, listed, suggest

TRANSACTION_MODES = ("DEFERRED", "IMMEDIATE", "EXCLUSIVE")

OPTIONS = (
    "node",
    "peers",
    "join",
    "role",
    "readmit",
    "secret",
    "tls",
    "reads",
    "max_staleness",
    "timeout",
    "lease_timeout",
    "transaction_mode",
    "init_command",
    "functions",
    "election_timeout",
    "apply_timeout",
    "max_transaction_bytes",
    "wal_limit",
    "log_entries",
    "log_bytes",
    "snapshot_rate",
    "on_divergence",
    "archive",
    "mode",
    "host",
)
_SQLITE3_OPTIONS = frozenset(
    {"check_same_thread", "detect_types", "isolation_level", "uri", "factory", "cached_statements", "autocommit"}
)
MAX_STALENESS = 5.0
ELECTION_TIMEOUT_RANGE = (0.05, 60.0)
LEASE_TIMEOUT_RANGE = (0.05, 60.0)
TRANSACTION_BYTES_RANGE = (1024 * 1024, 1024 * 1024 * 1024)
"""The upper end is what one message between an attached process and its host holds."""
WAL_LIMIT_RANGE = (1024 * 1024, 1024 * 1024 * 1024 * 1024)
LOG_ENTRIES_RANGE = (10, 1_000_000_000)
LOG_BYTES_RANGE = WAL_LIMIT_RANGE
_ARCHIVE = ("storage", "interval", "hold")
ARCHIVE_INTERVAL = 10.0
ARCHIVE_INTERVALS = (0.1, 3600.0)
ARCHIVE_HOLD = 1024 * 1024 * 1024
SNAPSHOT_RATE_RANGE = (64 * 1024, 1024 * 1024 * 1024 * 1024)

# A key of our own in a settings dictionary; Django's copies of it (threads, test workers) carry it along.
TEST = "_RAFTSQLITE_TEST"

_DEFAULT: dict[str, Any] = {field.name: field.default for field in fields(NodeConfig)}

LOCALHOST = "localhost"
"""The address of a node that names none: a group of one, which opens no port."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A wrong value: ``path`` says where it stands, ``text`` what was found, ``advice`` what to write instead.

    ``id`` is the number of its system check, such as ``"E003"``.
    """

    id: str
    path: str
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path} {self.text} {self.advice}"


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
    reader = _Reader(alias, settings_dict)
    configuration = reader.read()
    if reader.problems:
        raise ImproperlyConfigured(str(reader.problems[0]))
    return configuration


def find_problems(alias: str, settings_dict: MutableMapping[str, Any]) -> list[Problem]:
    """Everything that is wrong with the settings of ``alias``; empty when :func:`configure` would succeed."""
    try:
        merge_environment(alias, settings_dict)
    except ImproperlyConfigured as error:
        variable = environment_variable(alias)
        return [Problem("E008", variable, str(error).removeprefix(f"{variable} "), "")]
    reader = _Reader(alias, settings_dict)
    reader.read()
    return reader.problems


class _Reader:
    """Reads one alias's settings; a wrong value goes to ``problems`` and is replaced by its default."""

    def __init__(self, alias: str, settings_dict: Mapping[str, Any]) -> None:
        self.alias = alias
        self.path = f'DATABASES["{alias}"]'
        self.settings = settings_dict
        self.options: Mapping[str, Any] = settings_dict.get("OPTIONS") or {}
        self.problems: list[Problem] = []

    def read(self) -> Configuration:
        self._check_keys()
        testing = bool(self.settings.get(TEST))
        address, peers = self._members()
        join, learner = self._join(address), self._learner()
        secrets, tls = self._credentials()
        discovery = self._discovery(tls is not None)
        secret, second_secret = (*(secrets.found if secrets else ()), None, None)[:2]
        self._check_security(address, (*peers, *join), secret, tls, sought=discovery is not None)
        if testing:
            # A test database is a group of its own: no peers, no ports, nothing fsynced, and a TestCase may
            # hold its transaction for minutes.
            address, peers, join, secret, second_secret, tls = LOCALHOST, (LOCALHOST,), (), None, None, None
            discovery = None
        lease_timeout = self._seconds("lease_timeout", _DEFAULT["lease_timeout"], *LEASE_TIMEOUT_RANGE)
        node = NodeConfig(
            name=self._name(),
            address=address,
            peers=peers,
            secret=secret,
            tls=tls,
            timeout=self._seconds("timeout", _DEFAULT["timeout"]),
            election_timeout=self._seconds("election_timeout", _DEFAULT["election_timeout"], *ELECTION_TIMEOUT_RANGE),
            fixed_election_timeout=self._option("election_timeout") is not None,
            apply_timeout=self._seconds("apply_timeout", _DEFAULT["apply_timeout"]),
            max_transaction_bytes=self._bytes("max_transaction_bytes", TRANSACTION_BYTES_RANGE),
            wal_limit=self._bytes("wal_limit", WAL_LIMIT_RANGE),
            log_entries=self._entries("log_entries", LOG_ENTRIES_RANGE),
            log_bytes=self._bytes("log_bytes", LOG_BYTES_RANGE),
            snapshot_rate=self._bytes("snapshot_rate", SNAPSHOT_RATE_RANGE),
            lease_timeout=None if testing else lease_timeout,
            mode=self._mode(),
            host=True if testing else self._host(),
            durable=not testing,
            registrars=self._registrars(),
            on_divergence=self._on_divergence(),
            archive=None if testing else self._archive(),
            observers=() if testing else (Sender(self.alias),),
            reluctant=not testing and is_short_lived(sys.argv),
            join=join,
            learner=learner and not testing,
            discovery=discovery,
            readmit=self._readmit(),
            second_secret=second_secret,
        )
        max_staleness = self._seconds("max_staleness", MAX_STALENESS)
        return Configuration(
            node,
            Freshness(self._reads(), max_staleness),
            self._transaction_mode(),
            self._init_commands(),
            tuple(secrets.files) if secrets else (),
        )

    def _problem(self, number: str, option: str, text: str, advice: str) -> None:
        path = f'{self.path}["OPTIONS"]["{option}"]' if option in OPTIONS else f"{self.path}{option}"
        self.problems.append(Problem(number, path, text, advice))

    def _option(self, name: str) -> Any:
        return self.options.get(name)

    def _check_keys(self) -> None:
        for key in self.options:
            if key in OPTIONS:
                continue
            if key in _SQLITE3_OPTIONS:
                advice = "It belongs to the sqlite3 module, which is not used here. Remove it."
            else:
                advice = f"{suggest(key, OPTIONS)} Write one of {', '.join(OPTIONS)}.".strip()
            self._problem("E001", f'["OPTIONS"]["{key}"]', "is not an option of this backend.", advice)
        for key in self.settings:
            if key in OPTIONS:
                self._problem(
                    "E001", f'["{key}"]', "is in the wrong place.", f'Write it as {self.path}["OPTIONS"]["{key}"].'
                )

    def _name(self) -> Path:
        name = self.settings.get("NAME")
        advice = 'Write the path of this node\'s SQLite file, such as BASE_DIR / "data" / "db.sqlite3".'
        if not name:
            self._problem("E002", '["NAME"]', "is empty.", advice)
        elif not isinstance(name, str | os.PathLike):
            self._problem("E002", '["NAME"]', f"is {kind(name)}.", advice)
        elif str(name) == ":memory:" or "mode=memory" in str(name):
            self._problem(
                "E002",
                '["NAME"]',
                f"is {str(name)!r}: a database in memory cannot be replicated or recovered.",
                advice,
            )
        elif str(name).startswith("file:"):
            self._problem("E002", '["NAME"]', f"is {str(name)!r}: URIs are not supported.", advice)
        elif Path(name).is_dir():
            self._problem("E002", '["NAME"]', f"is {str(name)!r}, which is a folder.", advice)
        elif not Path(name).absolute().parent.is_dir():
            self._problem(
                "E002",
                '["NAME"]',
                f"is {str(name)!r}, and the folder {str(Path(name).absolute().parent)!r} does not exist.",
                "Make that folder, or write the path of a file in one that exists.",
            )
        else:
            return Path(name).absolute()
        return Path("unnamed.sqlite3").absolute()

    def _members(self) -> tuple[str, tuple[str, ...]]:
        node, peers, join = self._option("node"), self._option("peers"), self._option("join")
        if node is None:
            if peers is not None or join is not None:
                other = "peers" if peers is not None else "join"
                self._problem(
                    "E003",
                    "node",
                    f'is missing, although "{other}" is given.',
                    'Write the address of this node, such as "127.0.0.1:7101"; '
                    "the environment variable of the alias can say it for each node.",
                )
            return LOCALHOST, (LOCALHOST,)
        good = self._check_address("node", node)
        if join is not None and peers is not None:
            self._problem(
                "E003",
                "join",
                'is given, and so is "peers".',
                'Write "peers" (the same on all nodes) to begin a group, or "join" for a node that comes later.',
            )
        if peers is None or join is not None or is_url(peers):
            own = node if good else LOCALHOST
            return own, (own,) if join is None and peers is None else ()
        if not isinstance(peers, list | tuple) or not peers:
            self._problem(
                "E003",
                "peers",
                f"is {kind(peers)}." if peers else "is empty.",
                "Write a list of all voting members, this node included, such as "
                '["127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"]; leave it out for a group of one.',
            )
            return LOCALHOST, (LOCALHOST,)
        faulty = [peer for peer in peers if not self._check_address("peers", peer)]
        if faulty or not good:
            return LOCALHOST, (LOCALHOST,)
        doubled = sorted({peer for peer in peers if list(peers).count(peer) > 1})
        if doubled:
            self._problem("E003", "peers", f"names {doubled[0]!r} more than once.", "Write each member once.")
        if node not in peers:
            self._problem(
                "E003",
                "node",
                f"is {node!r}, which is not one of the peers {list(peers)!r}.",
                "Write the address exactly as it stands in peers, or add it there on every node.",
            )
            return LOCALHOST, (LOCALHOST,)
        return node, tuple(peers)

    def _join(self, node: str) -> tuple[str, ...]:
        join = self._option("join")
        if join is None or is_url(join):
            return ()
        if not isinstance(join, list | tuple) or not join:
            self._problem(
                "E003",
                "join",
                f"is {kind(join)}." if join else "is empty.",
                'Write a list of one member or more, such as ["127.0.0.1:7101"].',
            )
            return ()
        faulty = [member for member in join if not self._check_address("join", member)]
        if not faulty and node in join:
            self._problem(
                "E003", "join", f"names this node itself, {node!r}.", "Write the address of a member of the group."
            )
        return tuple(join)

    def _discovery(self, tls: bool) -> Discovery | None:
        """Members that are to be looked up, in place of those that are written down."""
        option = next((option for option in ("peers", "join") if is_url(self._option(option))), None)
        if option is None or any(problem.id == "E003" for problem in self.problems):
            return None
        try:
            return parse_discovery(option, self._option(option), self._option("node"), tls=tls)
        except Misspelt as error:
            self._problem("E003", option, error.text, error.advice)
            return None

    def _learner(self) -> bool:
        role = self._option("role")
        if role not in (None, "voter", "learner"):
            self._problem("E003", "role", f"is {role!r}.", 'Write "voter" or "learner".')
        elif role == "learner" and self._option("join") is None:
            self._problem(
                "E003",
                "role",
                'is "learner", and "join" is missing: a group begins with voters.',
                'Write "join": ["the address of a member"] in place of "peers".',
            )
        return bool(role == "learner")

    def _readmit(self) -> bool:
        readmit = self._option("readmit")
        if readmit is None:
            return True
        if not isinstance(readmit, bool):
            self._problem("E005", "readmit", f"is {readmit!r}.", "Write True or False.")
            return True
        return readmit

    def _check_address(self, option: str, address: object) -> bool:
        fault = "is not a string" if not isinstance(address, str) else parse_address(address)
        if isinstance(fault, str):
            where = "is" if option == "node" else "has the member"
            self._problem(
                "E003",
                option,
                f"{where} {address!r}: {fault}.",
                f"Write {address!r} alone, not in a list."
                if is_url(address) and option != "node"
                else 'Write "host:port" with a port from 1 to 65535, such as "127.0.0.1:7101".',
            )
            return False
        return True

    def _credentials(self) -> tuple[Secrets | None, TLSFiles | None]:
        """The secrets and the TLS files; wrong ones count as missing."""
        secrets, tls = self._option("secret"), self._option("tls")
        read = None if secrets is None else Secrets(secrets)
        files = None if tls is None else TLS(tls)
        for option, found in (("secret", read), ("tls", files)):
            for fault in () if found is None else found.faults:
                self._problem("E004", f'["OPTIONS"]["{option}"]{fault.where}', fault.text, fault.advice)
        return None if read is None or read.faults else read, None if files is None else files.files

    def _check_security(
        self, address: str, peers: tuple[str, ...], secret: str | None, tls: TLSFiles | None, *, sought: bool
    ) -> None:
        count = "several" if sought else len({address, *peers})
        if count == 1 or any(problem.id == "E004" for problem in self.problems):
            return
        if secret is None and tls is None:
            self._problem(
                "E004",
                "secret",
                f'is missing, and so is "tls": a group of {count} nodes would trust whoever connects.',
                'Write "secret" (the same random text on every node; loopback addresses only) or "tls" '
                '({"certificate": path, "key": path, "authority": path}).',
            )
        elif tls is None:
            for peer in (address, *peers):
                parsed = parse_address(peer)
                if isinstance(parsed, tuple) and not is_loopback(parsed[0]):
                    self._problem(
                        "E004",
                        "tls",
                        f"is missing, and the member {peer!r} is not on a loopback address: what the nodes send "
                        "each other would cross the network in the clear.",
                        'Write {"certificate": path, "key": path, "authority": path}, or use addresses such as '
                        '"127.0.0.1:7101" when all nodes are on this machine.',
                    )
                    return

    def _seconds(self, option: str, default: float, least: float = 0.0, most: float = math.inf) -> float:
        value = self._option(option)
        if value is None:
            return default
        limits = "a number of seconds above 0" if least == 0 else f"a number of seconds from {least:g} to {most:g}"
        advice = f"Write {limits}, such as {default:g}."
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._problem("E005", option, f"is {value!r}.", advice)
        elif value <= 0 or not least <= value <= most:
            self._problem("E005", option, f"is {value!r}, which is out of range.", advice)
        else:
            return float(value)
        return default

    def _bytes(self, option: str, limits: tuple[int, int]) -> int:
        least, most = limits
        lower = f"{least >> 20} MiB" if least >> 20 else f"{least >> 10} KiB"
        default = _DEFAULT[option]
        return self._whole(
            option,
            limits,
            f"Write a number of bytes from {least} ({lower}) to {most} ({most >> 30} GiB), such as "
            f"{default} ({default >> 20} MiB).",
        )

    def _entries(self, option: str, limits: tuple[int, int]) -> int:
        least, most = limits
        return self._whole(
            option, limits, f"Write a number of log entries from {least} to {most}, such as {_DEFAULT[option]}."
        )

    def _whole(self, option: str, limits: tuple[int, int], advice: str) -> int:
        value = self._option(option)
        default: int = _DEFAULT[option]
        if value is None:
            return default
        least, most = limits
        if isinstance(value, bool) or not isinstance(value, int):
            self._problem("E005", option, f"is {value!r}.", advice)
        elif not least <= value <= most:
            self._problem("E005", option, f"is {value!r}, which is out of range.", advice)
        else:
            return value
        return default

    def _archive(self) -> ArchiveConfig | None:
        archive = self._option("archive")
        if archive is None:
            return None
        advice = (
            'Write {"storage": alias, "interval": seconds}, with an alias of STORAGES that all nodes share, such as '
            '{"storage": "backups", "interval": 10}.'
        )
        if not isinstance(archive, Mapping):
            self._problem("E005", "archive", f"is {kind(archive)}.", advice)
            return None
        unknown = [key for key in archive if key not in _ARCHIVE]
        storage = archive.get("storage")
        interval, hold = archive.get("interval", ARCHIVE_INTERVAL), archive.get("hold", ARCHIVE_HOLD)
        least, most = ARCHIVE_INTERVALS
        if unknown:
            self._problem(
                "E005", "archive", f"has the unknown key {unknown[0]!r}.{suggest(str(unknown[0]), _ARCHIVE)}", advice
            )
        elif not isinstance(storage, str) or storage not in settings.STORAGES:
            known = listed(settings.STORAGES)
            self._problem("E005", "archive", f"has the storage {storage!r}; STORAGES has {known}.", advice)
        elif isinstance(interval, bool) or not isinstance(interval, int | float) or not least <= interval <= most:
            self._problem(
                "E005", "archive", f"has the interval {interval!r}.", f"Write seconds from {least:g} to {most:g}."
            )
        elif isinstance(hold, bool) or not isinstance(hold, int) or hold < 0:
            self._problem("E005", "archive", f"has hold: {hold!r}.", f"Write bytes, such as {ARCHIVE_HOLD}.")
        else:
            return ArchiveConfig(OpenStorage(storage, self.alias), float(interval), hold)
        return None

    def _mode(self) -> int:
        value = self._option("mode")
        default: int = _DEFAULT["mode"]
        if value is None:
            return default
        mode: int | None = None
        if isinstance(value, str):
            digits = value.removeprefix("0o")
            mode = int(digits, 8) if re.fullmatch("[0-7]{3,4}", digits) else None
        elif isinstance(value, int) and not isinstance(value, bool):
            mode = value
        # The owner must read and write; nobody executes. This also catches 600 for 0o600.
        if mode is None or mode & 0o600 != 0o600 or mode & ~0o666:
            shown = (
                f"{value!r} ({value:#o})" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
            )
            self._problem(
                "E005",
                "mode",
                f"is {shown}: not a file mode that lets the owner read and write.",
                'Write an octal number or text, such as 0o600 or "0600" (one user) or "0660" (a group).',
            )
            return default
        return mode

    def _host(self) -> bool:
        value = self._option("host")
        default: bool = _DEFAULT["host"]
        if value is None:
            return default
        if not isinstance(value, bool):
            self._problem(
                "E005",
                "host",
                f"is {value!r}.",
                "Write True (this process may host the node) or False (it only attaches to one that does).",
            )
            return default
        return value

    def _on_divergence(self) -> Literal["resync", "stop"]:
        value = self._option("on_divergence")
        if value is None or value == "resync":
            return "resync"
        if value != "stop":
            self._problem(
                "E005",
                "on_divergence",
                f"is {value!r}.{suggest(value, ('resync', 'stop'))}",
                'Write "resync" (a node whose content differs replaces it by that of a sound member) or "stop" (it '
                "serves nothing until somebody looks).",
            )
        return "stop"

    def _registrars(self) -> tuple[Registrar, ...]:
        path = self._option("functions")
        if path is None:
            return (register_django_functions,)
        try:
            return (register_django_functions, load_functions(path))
        except ImproperlyConfigured as error:
            self._problem(
                "E006",
                "functions",
                f"is {path!r}: {error}.",
                'Write the dotted path of a callable that takes a connection, such as "shop.sql.register".',
            )
            return (register_django_functions,)

    def _reads(self) -> Level:
        value = self._option("reads")
        if value is None:
            return "local"
        if value not in LEVELS:
            self._problem(
                "E007", "reads", f"is {value!r}.{suggest(value, LEVELS)}", f"Write one of {listed(LEVELS)}."
            )
            return "local"
        return cast("Level", value)

    def _transaction_mode(self) -> str | None:
        value = self._option("transaction_mode")
        if value is None:
            return None
        if not isinstance(value, str) or value.upper() not in TRANSACTION_MODES:
            self._problem(
                "E007",
                "transaction_mode",
                f"is {value!r}.{suggest(str(value).upper(), TRANSACTION_MODES)}",
                f"Write one of {listed(TRANSACTION_MODES)}, or None.",
            )
            return None
        return value.upper()

    def _init_commands(self) -> tuple[str, ...]:
        value = self._option("init_command")
        if value is None:
            return ()
        if not isinstance(value, str):
            self._problem(
                "E007",
                "init_command",
                f"is {kind(value)}.",
                'Write SQL text, statements separated by ";", such as "PRAGMA cache_size=-20000".',
            )
            return ()
        return tuple(command for part in value.split(";") if (command := part.strip()))
