"""What the documentation says of tests is so: each one that it names is there."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
NAMED = re.compile(r"`(?:tests/)?([\w/]*test_[\w*]+(?:\.py)?)`")


def written() -> set[str]:
    """The names of all test functions."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


@pytest.mark.parametrize("page", ["consensus.md", "guarantees.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    functions = written()
    files = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert len(named) > 20
    missing = [
        name
        for name in named
        if not (
            any(fnmatchcase(file, name) or fnmatchcase(file, f"*/{name}") for file in files)
            if name.endswith(".py")
            else any(fnmatchcase(function, name) for function in functions)
        )
    ]
    assert not missing


def test_every_row_of_the_guarantees_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "guarantees.md").read_text().splitlines() if line.startswith("| G")]
    assert len(rows) >= 14
    assert [row[:6] for row in rows if not NAMED.search(row)] == []
