"""Each protection of the shell is needed: without it a directed test fails, or the simulation finds a violation."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.audit import Shell, standing_clock

from .protections import PROTECTIONS, Protection

ROOT = Path(__file__).parents[2]
DIRECTED = [(protection, name) for protection in PROTECTIONS for name in protection.directed]


def call(
    test: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Run a directed test with the fixtures that it names."""
    with ExitStack() as stack:
        fixtures: dict[str, Callable[[], Any]] = {
            "tmp_path": lambda: tmp_path,
            "monkeypatch": lambda: monkeypatch,
            "caplog": lambda: caplog,
            "clock": lambda: clock,
            "shell": lambda: stack.enter_context(Shell(tmp_path)),
            "shell_of_five": lambda: stack.enter_context(Shell(tmp_path, "bcde")),
        }
        clock = stack.enter_context(standing_clock())
        test(**{name: fixtures[name]() for name in inspect.signature(test).parameters})


def find(name: str) -> Callable[..., Any]:
    module, function = name.split("::")
    found: Callable[..., Any] = getattr(importlib.import_module(f"tests.cluster.{module}"), function)
    return found


@pytest.mark.parametrize(("protection", "name"), DIRECTED, ids=[name.split("::")[1] for _, name in DIRECTED])
def test_a_directed_test_fails_without_its_protection(
    protection: Protection,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    test = find(name)
    call(test, tmp_path / "with", monkeypatch, caplog)
    # However it fails: the library may well stumble over what it is given.
    with protection.off(), pytest.raises((Exception, pytest.fail.Exception)) as failure:
        call(test, tmp_path / "without", monkeypatch, caplog)
    print(repr(failure.value)[:300])
