"""What nodes tell each other in the handshake of what a replay may depend on."""

from __future__ import annotations

import zoneinfo
from pathlib import Path

import django
import pytest

from django_raftsqlite.node import facts
from django_raftsqlite.node.facts import handshake_facts
from django_raftsqlite.raft.handshake import REFUSE


def registrar(connection: object) -> None:
    raise NotImplementedError


def test_all_that_a_replay_may_depend_on_is_told() -> None:
    """What must be the same is compared by the handshake; the rest is a warning in both logs."""
    told = handshake_facts([])
    assert told.keys() == {
        *("sqlite", "sqlite source", "architecture", "functions"),
        *("python", "django", "tz", "tzdata"),
    }
    assert told.keys() >= REFUSE
    assert told["django"] == django.__version__
    assert all(told.values())


def test_other_functions_are_another_fact() -> None:
    assert handshake_facts([])["functions"] != handshake_facts([registrar])["functions"]
    assert handshake_facts([registrar])["functions"] == handshake_facts([registrar])["functions"]


def test_the_time_zone_data_is_what_zoneinfo_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's before the package's; a system that does not say which it has is no fault."""
    empty, system = tmp_path / "empty", tmp_path / "system"
    empty.mkdir()
    system.mkdir()
    (system / "tzdata.zi").write_text("# version 2031x\n# This zic input file is in the public domain.\n")
    monkeypatch.setattr(zoneinfo, "TZPATH", (str(empty), str(system)))
    assert handshake_facts([])["tzdata"] == "2031x"

    monkeypatch.setattr(zoneinfo, "TZPATH", (str(empty),))
    monkeypatch.setattr(facts, "version", {"tzdata": "2031.2", "django": "5.2"}.__getitem__)
    assert handshake_facts([])["tzdata"] == "2031.2"

    def missing(name: str) -> str:
        raise facts.PackageNotFoundError(name)

    monkeypatch.setattr(facts, "version", missing)
    assert (handshake_facts([])["tzdata"], handshake_facts([])["django"]) == ("unknown", "none")
