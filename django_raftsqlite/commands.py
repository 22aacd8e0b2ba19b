"""Whether this process is a management command that will soon end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

LASTING = frozenset({"runserver", "testserver", "runcluster"})
"""Django's and our own commands that serve until they are stopped; ``raft node`` is another."""


def is_short_lived(argv: Sequence[str]) -> bool:
    """Whether ``argv`` (as ``sys.argv``) is that of a management command other than one that serves.

    Such as ``manage.py migrate``, ``django-admin shell``, ``python -m django dumpdata``. What is not recognized (a
    web server, a worker, a script of its own) is taken for lasting.
    """
    if len(argv) < 2 or not _is_entry_point(PurePath(argv[0])):
        return False
    command, rest = argv[1], argv[2:]
    if command == "raft":
        return "node" not in rest
    return command not in LASTING


def _is_entry_point(program: PurePath) -> bool:
    if program.name == "__main__.py":  # python -m django
        return program.parent.name == "django"
    return program.name.removesuffix(".exe").removesuffix(".py") in {"manage", "django-admin"}
