"""``OPTIONS["secret"]`` and ``OPTIONS["tls"]``: texts, files, the environment, and two of a kind during rotation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .node.api import TLSFiles
from .wording import kind, suggest

SECRET_MINIMUM = 16
SECRET_LARGEST = 4096
"""Bytes of a file that holds a secret."""

_SOURCES = ("file", "env")
_FILES = ("certificate", "key", "authority")

_HOW = (
    'Write the same random text on every node, such as what python -c "import secrets; '
    'print(secrets.token_hex(32))" prints; or {"file": path} or {"env": name of a variable} for where it is.'
)
_TLS_ADVICE = 'Write {"certificate": path, "key": path, "authority": path}, all of them PEM files.'


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong: ``where`` below the option (``["key"]``, or empty), what was found, what to write instead.

    None of its texts holds a secret, or a part of one.
    """

    where: str
    text: str
    advice: str


class Secrets:
    """``OPTIONS["secret"]``: ``found`` has the secrets (one, or two while one replaces the other), ``files`` those
    that they were read from, ``faults`` what is wrong; without faults, ``found`` is not empty."""

    def __init__(self, value: object) -> None:
        self.found: list[str] = []
        self.files: list[Path] = []
        self.faults: list[Fault] = []
        if not isinstance(value, list | tuple):
            self._take("", value)
        elif not 1 <= len(value) <= 2:
            self._fault("", f"is a list of {len(value)}.", "Write one secret, or two while one replaces the other.")
        else:
            for number, each in enumerate(value):
                self._take(f"[{number}]", each)
        if len(self.found) == 2 and self.found[0] == self.found[1]:
            self._fault("", "names the same secret twice.", "Write it once, or the new one and the old one.")

    def _fault(self, where: str, text: str, advice: str = _HOW) -> None:
        self.faults.append(Fault(where, text, advice))

    def _take(self, where: str, value: object) -> None:
        source = ""
        if isinstance(value, Mapping):
            named = self._read(where, value)
            if named is None:
                return
            (key,) = value
            where = f'{where}["{key}"]'
            source, value = named
        if not isinstance(value, str):
            self._fault(where, f"is {kind(value)}.")
        elif len(value) < SECRET_MINIMUM:
            self._fault(where, f"{source}has {len(value)} characters; at least {SECRET_MINIMUM} are needed.")
        else:
            self.found.append(value)

    def _read(self, where: str, value: Mapping[object, object]) -> tuple[str, str] | None:
        """Where the secret is, in words for a message, and the secret."""
        keys = list(value)
        if len(keys) != 1 or keys[0] not in _SOURCES:
            guess = suggest(str(keys[0]), _SOURCES) if len(keys) == 1 else ""
            self._fault(where, f'is a dictionary with other keys than "file" or "env", one of them.{guess}')
            return None
        key, name = str(keys[0]), value[keys[0]]
        where = f'{where}["{key}"]'
        if key == "env":
            if not isinstance(name, str) or not name:
                self._fault(where, f"is {kind(name)}.", "Write the name of an environment variable.")
            elif name not in os.environ:
                self._fault(where, f"is {name!r}, and there is no such variable.", "Set it for every process.")
            else:
                return f"is {name!r}, which ", os.environ[name].strip()
            return None
        if not isinstance(name, str | os.PathLike) or not os.fspath(name):
            self._fault(where, f"is {kind(name)}.", "Write the path of a file that holds the secret alone.")
            return None
        path = Path(name).absolute()
        self.files.append(path)
        try:
            with path.open("rb") as file:
                data = file.read(SECRET_LARGEST + 1)
            if len(data) > SECRET_LARGEST:
                raise ValueError(f"it is larger than {SECRET_LARGEST} bytes")
            return f"is {str(path)!r}, which ", data.decode().strip()
        except UnicodeDecodeError:
            reason = "it is not text in UTF-8"  # the error's own text quotes the file
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError as error:
            reason = str(error)
        self._fault(
            where,
            f"is {str(path)!r}, which this user (uid {os.getuid()}) cannot read: {reason}.",
            "Name a file that holds the secret alone, and that this user may read.",
        )
        return None


class TLS:
    """``OPTIONS["tls"]``: ``files``, or None with ``faults``. ``authority`` may be a list: all are believed."""

    def __init__(self, value: object) -> None:
        self.files: TLSFiles | None = None
        self.faults: list[Fault] = []
        if not isinstance(value, Mapping):
            self._fault("", f"is {kind(value)}.")
            return
        for key in value:
            if key not in _FILES:
                self._fault("", f"has the unknown key {key!r}.{suggest(str(key), _FILES)}")
        certificate, key_file = (self._path(f'["{name}"]', value.get(name)) for name in ("certificate", "key"))
        authority = self._authorities(value.get("authority"))
        if certificate is not None and key_file is not None and authority:
            self.files = TLSFiles(certificate=certificate, key=key_file, authority=authority)

    def _fault(self, where: str, text: str, advice: str = _TLS_ADVICE) -> None:
        self.faults.append(Fault(where, text, advice))

    def _authorities(self, value: object) -> tuple[Path, ...]:
        if not isinstance(value, list | tuple):
            path = self._path('["authority"]', value)
            return () if path is None else (path,)
        if not value:
            self._fault('["authority"]', "is empty.")
        found = [self._path(f'["authority"][{number}]', each) for number, each in enumerate(value)]
        paths = tuple(path for path in found if path is not None)
        return paths if len(paths) == len(value) else ()

    def _path(self, where: str, value: object) -> Path | None:
        if value is None:
            self._fault(where, "is missing.")
        elif not isinstance(value, str | os.PathLike):
            self._fault(where, f"is {kind(value)}.")
        elif Path(value).is_dir():
            self._fault(where, f"is {str(value)!r}, which is a folder.", "Write the path of a PEM file.")
        elif not Path(value).is_file():
            self._fault(where, f"is {str(value)!r}, and there is no such file.", "Write the path of a PEM file.")
        elif not os.access(value, os.R_OK):
            self._fault(
                where,
                f"is {str(value)!r}, which this user (uid {os.getuid()}) may not read.",
                "Give this user read permission, or name another file.",
            )
        else:
            return Path(value).absolute()
        return None
