"""Each protection of the shell is needed: without it a directed test fails, or the simulation finds a violation."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .protections import PROTECTIONS, Protection
from .test_seeds import ROOT, simulate

DIRECTED = [(protection, name) for protection in PROTECTIONS for name in protection.directed]
# Imported before any test runs: CPython 3.11 may refuse to compile a module in a thread that has switched greenlets.
MODULES = {path: importlib.import_module(f"tests.{path}") for path in (name.split("::")[0] for _, name in DIRECTED)}


class Fixtures:
    """A test's fixtures: pytest's own as they are, and those of its module made anew for each run."""

    def __init__(self, module: ModuleType, known: dict[str, Any], stack: ExitStack) -> None:
        self._module = module
        self._known = dict(known)
        self._stack = stack

    def call(self, function: Callable[..., Any]) -> Any:
        """Call a test, or what makes a fixture, with the fixtures that it names."""
        return function(**{name: self._get(name) for name in inspect.signature(function).parameters})

    def _get(self, name: str) -> Any:
        if name not in self._known:
            made = self.call(inspect.unwrap(getattr(self._module, name)))
            if isinstance(made, Iterator):
                made = self._stack.enter_context(contextmanager(lambda made=made: made)())
            self._known[name] = made
        return self._known[name]


def run(name: str, known: dict[str, Any]) -> None:
    """Run a directed test."""
    path, function = name.split("::")
    module = MODULES[path]
    with ExitStack() as stack:
        Fixtures(module, known, stack).call(getattr(module, function))


@pytest.mark.parametrize(("protection", "name"), DIRECTED, ids=[name.split("::")[1] for _, name in DIRECTED])
def test_a_directed_test_fails_without_its_protection(
    protection: Protection,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = {"monkeypatch": monkeypatch, "caplog": caplog}
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with monkeypatch.context() as patches:
        run(name, {**known, "monkeypatch": patches, "tmp_path": tmp_path / "with"})
    with protection.off(), pytest.raises((Exception, pytest.fail.Exception)) as failure:
        run(name, {**known, "tmp_path": tmp_path / "without"})
    # However it fails, since some faults are errors that get out; but not because a switch names what is no more.
    assert not isinstance(failure.value, AttributeError | NameError | TypeError)
    print(repr(failure.value)[:300])


@pytest.mark.timeout(900)
def test_the_simulation_misses_each_protection_within_the_seeds_that_are_stated() -> None:
    found = simulate("--check", module="tests.simulation.ablate")
    print(found.stdout, found.stderr)
    assert found.returncode == 0
    assert found.stdout.count("seed ") == sum(protection.seeds is not None for protection in PROTECTIONS)


def test_every_protection_is_shown_to_be_needed_and_stands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "consensus.md").read_text()
    for protection in PROTECTIONS:
        assert protection.seeds is not None or protection.directed, protection.name
        assert protection.row in text, f"not in docs/consensus.md: {protection.row}"
