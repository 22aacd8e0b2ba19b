"""The shop moves over to PostgreSQL, by the commands that docs/outgrowing.md says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.postgresql import PostgresqlGroup, installed_programs

from .cluster import ROOT, TESTPROJECT

AFTER = """
from shop.models import Order
last = Order.objects.order_by("pk").last().pk
print(last, Order.objects.create(customer="first of the new times").pk)
"""


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[PostgresqlGroup]:
    """One server, whose data ends with the test."""
    server = PostgresqlGroup(tmp_path, standbys=0)
    try:
        server.start()
        yield server
    finally:
        server.close()


def manage(data: Path, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(TESTPROJECT / "manage.py"), *words],
        cwd=data,
        env={**os.environ, "TESTPROJECT_DATA": str(data), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout


def documented() -> dict[str, list[str]]:
    """The commands of the page's last part, by their names."""
    page = (ROOT / "docs" / "outgrowing.md").read_text().partition("## Over to PostgreSQL")[2]
    found = [shlex.split(words) for words in re.findall(r"^ +manage\.py (.*)$", page, re.MULTILINE)]
    return {words[0]: words for words in found}


def objects(path: Path) -> dict[tuple[str | None, str | None], str]:
    """Everything in a dump: its text by model and primary key."""
    found = list(ET.parse(path).getroot())
    return {(each.get("model"), each.get("pk")): ET.tostring(each, encoding="unicode").strip() for each in found}


@pytest.mark.skipif(installed_programs() is None, reason="no PostgreSQL here")
def test_the_shop_moves_over_to_postgresql_with_its_rows_and_keys(
    tmp_path: Path, postgresql: PostgresqlGroup
) -> None:
    commands = documented()
    assert set(commands) == {"dumpdata", "migrate", "loaddata"}
    there = {**postgresql.environment, "TESTPROJECT_ENGINE": "postgresql"}
    manage(tmp_path, "migrate", "--verbosity", "0")
    manage(tmp_path, "seed", "--admin", "admin")

    manage(tmp_path, *commands["dumpdata"])
    manage(tmp_path, *commands["migrate"], **there)
    manage(tmp_path, *commands["loaddata"], **there)

    before = objects(tmp_path / "site.xml")
    manage(tmp_path, *commands["dumpdata"][:-1], "after.xml", **there)
    after = objects(tmp_path / "after.xml")
    assert len(before) > 100
    assert {model for model, _ in before} >= {"shop.product", "shop.order", "shop.orderline", "auth.user"}
    assert after == before

    last, new = map(int, manage(tmp_path, "shell", "--verbosity", "0", "--command", AFTER, **there).split())
    assert new == last + 1, "the sequences go on behind the keys that were loaded"
