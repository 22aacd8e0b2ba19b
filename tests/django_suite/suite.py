"""One run of a test suite in a process of its own, on one engine, one of three ways."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .environment import Environment, Missing, django_environment
from .verdict import Report

OVERLAY = Path(__file__).resolve().parent / "overlay"


@dataclass(frozen=True, slots=True)
class Way:
    """How the database is run: the ``engine`` ("ours" or "sqlite3"); ours on one node, with the tests on a follower
    of a group of ``nodes``, or ``attached`` to a host process."""

    engine: str = "ours"
    nodes: int = 1
    attached: bool = False

    def __str__(self) -> str:
        if self.engine == "sqlite3":
            return "sqlite3"
        if self.attached:
            return "attached to a host process"
        return "one node" if self.nodes == 1 else f"on a follower of {self.nodes} nodes"

    def environment(self, folder: Path) -> dict[str, str]:
        """What the overlay's modules read."""
        real = self.engine == "ours" and (self.attached or self.nodes > 1)
        return {
            "RAFTSUITE_ENGINE": "group" if real else self.engine,
            "RAFTSUITE_NODES": str(self.nodes),
            "RAFTSUITE_ATTACHED": "1" if self.attached else "0",
            "RAFTSUITE_FOLDER": str(folder),
            "RAFTSUITE_REPORT": str(folder / "report.json"),
        }


ONE_NODE = Way()
FOLLOWER = Way(nodes=3)
ATTACHED = Way(attached=True)
SQLITE3 = Way("sqlite3")


def run_tests(
    environment: Environment,
    command: Sequence[str | Path],
    cwd: Path,
    way: Way,
    *,
    output: Path | None = None,
    path: Path | None = None,
) -> Report:
    """Run ``command`` with the environment's Python in ``cwd``, and return what the overlay's runner reported.

    ``output``: a file for what it prints, in place of the terminal. ``path``: one more folder to import from. Raises
    Missing when there is no report.
    """
    with tempfile.TemporaryDirectory(prefix="raftsuite-") as name:
        folder = Path(name)
        variables = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "RAFTSQLITE_"))},
            **way.environment(folder),
            # Where test databases go: the suite leaves none behind, however it ends.
            "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, (OVERLAY, *([path] if path else [])))),
        }
        arguments = [environment.python, *command]
        if output is None:
            done = subprocess.run(arguments, cwd=cwd, env=variables, check=False)
        else:
            with output.open("w") as stream:
                done = subprocess.run(
                    arguments, cwd=cwd, env=variables, check=False, stdout=stream, stderr=subprocess.STDOUT
                )
        report = folder / "report.json"
        if not report.exists():
            told = f"; it printed:\n{output.read_text()[-3000:]}" if output else ""
            raise Missing(f"the tests ended with status {done.returncode} and no report{told}")
        found: Report = json.loads(report.read_text())
        return found


def run_django(
    django: str,
    way: Way,
    labels: Sequence[str] = (),
    *,
    python: str | None = None,
    parallel: int = 1,
    refresh: bool = False,
    output: Path | None = None,
) -> Report:
    """Run Django's suite, or the part that ``labels`` name. Raises Missing when this machine lacks something."""
    environment, source, _ = django_environment(django, python, refresh=refresh)
    command = ["runtests.py", "--settings=raftsuite.settings", f"--parallel={parallel}", "--noinput", "-v0", *labels]
    return run_tests(environment, command, source / "tests", way, output=output)
