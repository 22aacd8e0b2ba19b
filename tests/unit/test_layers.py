"""Imports point one way: Django modules -> dbapi -> node -> {raft, sqlite}; exceptions.py is below all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import django_raftsqlite

PACKAGE = "django_raftsqlite"
ROOT = Path(django_raftsqlite.__file__).parent

BELOW: dict[str, set[str]] = {
    "django": {"dbapi", "node", "sqlite"},  # Django's eight modules, settings, checks and commands
    "dbapi": {"node", "sqlite"},
    "node": {"raft", "sqlite"},
    "raft": set(),
    "sqlite": set(),
    "exceptions": set(),
}
"""What a layer may import besides itself and exceptions.py."""

FOREIGN: dict[str, set[str]] = {
    "django": {"apsw", "django"},
    "dbapi": {"apsw", "msgpack", "sqlite3"},
    "node": {"apsw", "msgpack"},
    "raft": {"apsw", "msgpack", "pysyncobj"},
    "sqlite": {"apsw", "msgpack"},
    "exceptions": set(),
}
"""What it may import of what this rule is about (see WATCHED)."""

WATCHED = {"django", "pysyncobj", "apsw", "msgpack", "sqlite3"}


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] in BELOW and parts[0] != "django" else "django"


def imported(path: Path) -> Iterator[str]:
    """The absolute names of all modules that a file imports, wherever in it."""
    package = (PACKAGE, *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            yield module
            # `from . import name` may name a module.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(path: Path) -> list[str]:
    layer = layer_of(path)
    found = []
    for name in imported(path):
        first, _, rest = name.partition(".")
        if first == PACKAGE:
            target = rest.split(".")[0]
            if target in {layer, "exceptions", "", "__version__"}:
                continue
            target = target if target in BELOW else "django"
            if target != layer and target not in BELOW[layer]:
                found.append(f"{path.relative_to(ROOT)} is {layer} and imports {name}")
        elif first in WATCHED and first not in FOREIGN[layer]:
            found.append(f"{path.relative_to(ROOT)} is {layer} and imports {name}")
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    assert faults(path) == []


def test_every_layer_is_looked_at() -> None:
    """The rule would say nothing about a folder that was renamed."""
    assert {layer_of(path) for path in FILES} == set(BELOW)


@pytest.mark.parametrize(
    ("place", "statement"),
    [
        ("node/x.py", "from ..dbapi import connect"),
        ("node/x.py", "from .. import dbapi"),
        ("node/x.py", "def f():\n    import django.db"),
        ("sqlite/x.py", "from ..node.api import Node"),
        ("sqlite/x.py", "import django_raftsqlite.raft.log"),
        ("raft/x.py", "from ..sqlite.machine import StateMachine"),
        ("dbapi/x.py", "from django.db import connection"),
        ("dbapi/x.py", "from ..raft import config"),
        ("dbapi/x.py", "from .. import configuration"),
        ("base.py", "import pysyncobj"),
        ("exceptions.py", "from .sqlite import errors"),
    ],
)
def test_an_import_upwards_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, statement: str
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(statement)
    assert faults(path) != []
