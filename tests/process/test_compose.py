"""deploy/docker/compose.yaml outside of containers: its services' own commands and settings, on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_raftsqlite.management.certificates import init_authority, issue_certificate
from tests.support.ports import free_ports
from tests.support.printing import Printing

from .cluster import ROOT, TESTPROJECT
from .running import until

NODES = ("node1", "node2", "node3")
DEADLINE = 90.0
PROGRAMS = {"python": [sys.executable], "gunicorn": [sys.executable, "-m", "gunicorn"]}


class Service:
    """One of the services: what containers give to it (names, volumes, ports) is found on this machine instead."""

    def __init__(self, name: str, folder: Path, addresses: dict[str, str]) -> None:
        self._service = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())["services"][name]
        (volume,) = [each.partition(":")[0] for each in self._service["volumes"] if each.endswith(":/srv/data")]
        self.data = folder / volume
        self.data.mkdir(exist_ok=True)
        (port,) = free_ports(1)
        self.url = f"http://localhost:{port}"
        self._instead = {
            **addresses,
            "/srv/data": str(self.data),
            "/run/raft": str(folder / "raft"),
            "0.0.0.0:8000": f"127.0.0.1:{port}",
            "http://localhost:8000": self.url,
        }
        self._environment = {
            **{key: self._here(value) for key, value in self._service["environment"].items()},
            "TESTPROJECT_DATA": str(self.data),
            "TESTPROJECT_DEBUG": "0",
            "HOME": str(self.data),
        }

    def _here(self, text: str) -> str:
        for there, here in self._instead.items():
            text = text.replace(there, here)
        return text

    def run(self, command: list[str] | None = None) -> Printing:
        """Its command, or another one in its place, as ``docker compose run`` has it."""
        program, *words = command or self._service["command"]
        return Printing(
            [*PROGRAMS[program], *map(self._here, words)],
            folder=TESTPROJECT,
            environment=self._environment,
            deadline=DEADLINE,
        )

    def is_healthy(self) -> bool:
        """What its health check says."""
        kind, program, *words = self._service["healthcheck"]["test"]
        assert kind == "CMD"
        command = [*PROGRAMS[program], *map(self._here, words)]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture
def started() -> Iterator[list[Printing]]:
    """Those in it end with the test."""
    made: list[Printing] = []
    yield made
    for process in reversed(made):
        process.close()


def ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.timeout(300)
def test_the_services_of_the_compose_file_make_a_site(tmp_path: Path, started: list[Printing]) -> None:
    """Three nodes with certificates, `migrate` once, and web servers that are healthy and have the same."""
    ports = free_ports(len(NODES))
    addresses = {f"{node}:7100": f"127.0.0.1:{port}" for node, port in zip(NODES, ports, strict=True)}
    init_authority(tmp_path / "raft", "compose", 1)
    for node in NODES:
        issue_certificate(tmp_path / "raft", [node, "127.0.0.1"], 1, tmp_path / "raft")

    def service(name: str) -> Service:
        return Service(name, tmp_path, addresses)

    def run(*arguments: Any) -> Printing:
        started.append(service(arguments[0]).run(*arguments[1:]))
        return started[-1]

    nodes = [run(node) for node in NODES]
    for process in nodes:
        process.wait_for("^hosting 127")
    status = ["python", "manage.py", "raft", "status"]
    until(lambda: run("node1", status).wait() == 0, lambda: f"no leader: {started[-1].lines}")
    migrated = run("migrate")
    assert migrated.wait() == 0, migrated.lines

    webs = [service("web1"), service("web3")]
    servers = [web.run() for web in webs]
    started += servers
    for web in webs:
        until(web.is_healthy, lambda: f"not healthy: {[server.lines for server in servers]}")
    assert ask(f"{webs[0].url}/api/events/", {"text": "from web1"})["text"] == "from web1"
    assert ask(f"{webs[1].url}/api/events/?reads=leader") == {"events": ["from web1"]}

    for process in (*servers, *nodes):
        assert process.end(signal.SIGTERM) == 0, process.lines
