"""What the documentation names is there, and what is there is documented: commands, options, settings, checks."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import pytest
from django.core.management.base import CommandError

from django_raftsqlite.management.commands import raft, runcluster
from django_raftsqlite.node.api import TLSFiles
from django_raftsqlite.options import archive, given

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


COMMANDS = {"raft": raft.Command, "runcluster": runcluster.Command}
WITH_COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs").glob("*.md")
    if path.name not in {"commands.md"} and "manage.py r" in path.read_text()
)


def generator() -> ModuleType:
    """docs/generate_commands.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("generate_commands", ROOT / "docs" / "generate_commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.Action]]:
    """Each argument that ``--help`` shows, of the command and of all below it, with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                yield from arguments(below, f"{name} {verb}")
        elif action.help != argparse.SUPPRESS:
            yield name, action


def rows(page: str, heading: str) -> set[str]:
    """The names in the first column of the tables below a heading."""
    _, _, below = (ROOT / "docs" / page).read_text().partition(f"\n## {heading}\n")
    assert below
    firsts = [line.split("|")[1] for line in below.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    return {name for first in firsts for name in re.findall(r"`([^`]+)`", first)}


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    module = generator()
    assert module.PAGE.read_text() == module.page(), "run `make docs`, and commit docs/commands.md"
    assert "%(" not in module.page(), "a default that --help fills in"


def test_every_argument_of_every_command_is_explained_and_on_the_page() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    seen = 0
    for command, made in COMMANDS.items():
        for name, action in arguments(made().create_parser("manage.py", command), command):
            assert action.help, f"manage.py {name}: {action.dest} has no help"
            if action.dest in {"help", "version"} or name == command == "raft":
                continue
            seen += 1
            if command != name:
                section = page.partition(f"### {name}\n")[2].partition("\n#")[0]
                assert section, f"no section for {name}"
                for option in action.option_strings[-1:] or [action.metavar]:
                    assert f"`{option}" in section, f"{name}: {option}"
    assert seen > 40


def test_every_option_is_in_the_reference_of_settings_and_no_other() -> None:
    assert rows("settings.md", "OPTIONS") == set(given.OPTIONS)


@pytest.mark.parametrize("keys", [archive.KEYS, tuple(field.name for field in fields(TLSFiles))])
def test_the_keys_of_options_that_have_keys_are_in_the_reference(keys: tuple[str, ...]) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert [key for key in keys if f'`"{key}"`' not in page] == []


def test_every_setting_of_the_project_that_is_read_is_in_the_reference_and_no_other() -> None:
    read: set[str] = set()
    for path in (ROOT / "django_raftsqlite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings":
                read.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                of, name = node.args[:2]
                if isinstance(of, ast.Name) and of.id == "settings" and isinstance(name, ast.Constant):
                    read.add(str(name.value))
    ours = {name for name in read if name.startswith("RAFTSQLITE")}
    assert ours
    assert rows("settings.md", "Settings of the project") == ours


def test_every_system_check_is_on_its_page_and_no_other() -> None:
    found: set[str] = set()
    for path in (ROOT / "django_raftsqlite").rglob("*.py"):
        found |= set(re.findall(r"\b[EW]0\d\d\b", path.read_text()))
    page = (ROOT / "docs" / "checks.md").read_text()
    assert found == set(re.findall(r"^\| `raftsqlite\.([EW]\d{3})`", page, re.MULTILINE))


def said(page: str) -> Iterator[list[str]]:
    """The words after ``manage.py`` of each command of ours in the page's blocks of code, without comments."""
    for block in re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.search(
                r"manage\.py ((?:raft|runcluster)\b.*)", line.partition("  #")[0].partition("    # ")[0]
            )
            if match:
                yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize("page", ["README.md", *WITH_COMMANDS])
def test_every_command_of_ours_that_a_page_shows_exists_with_its_options(page: str) -> None:
    for words in said(page):
        parser = COMMANDS[words[0]]().create_parser("manage.py", words[0])
        try:
            parser.parse_args(words[1:])
        except (CommandError, SystemExit) as error:
            pytest.fail(f"{page}: manage.py {shlex.join(words)}: {error}")


def test_the_runbook_has_a_command_for_each_of_its_steps() -> None:
    assert len(list(said("docs/runbook.md"))) > 30
