"""Test databases that are real groups: the tests' process is one node, or attaches to it; others host the rest."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.registry import attach_node, open_node

DEADLINE = 60.0
SECRET = "raftsuite's secret"
# The tests' node must follow: it never gets to stand for election.
NEVER = 3600.0

GROUPS: dict[str, Group] = {}
"""The groups of this process, by the file of the node that its tests use."""


class Group:
    """One test database's group. ``attached``: its one node is hosted by another process; else it has
    ``nodes`` members, and the tests' process hosts one that follows."""

    def __init__(self, name: Path, *, nodes: int, attached: bool) -> None:
        self.attached = attached
        count = 1 if attached else nodes
        peers = tuple(f"127.0.0.1:{port}" for port in _free_ports(count)) if count > 1 else ("localhost",)
        self.names = [name, *(name.with_name(f"{name.name}.node{n}") for n in range(1, count))]
        self._peers = peers
        hosted = [0] if attached else range(1, count)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raftsuite.hosts"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([[str(self.names[n]), peers[n], list(peers)] for n in hosted]) + "\n")
        self._process.stdin.flush()
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the other nodes of {name} did not start; exit status {self._process.wait()}")

    def config(self, config: NodeConfig) -> NodeConfig:
        """The configuration of the tests' node, from that of a test database."""
        if self.attached:
            return dataclasses.replace(config, host=False)
        return dataclasses.replace(
            config, address=self._peers[0], peers=self._peers, secret=SECRET, election_timeout=NEVER
        )

    def compare(self) -> None:
        """Wait until all nodes have applied the same; raises AssertionError unless digests and dumps are equal, and
        the tests' node is what it should be."""
        status = self._eventually(self._agreed, "all nodes have applied the same, with the same digest")
        own = status[0]
        if self.attached:
            assert own["host"]["pid"] == self._process.pid, "the tests' process hosts the node itself"
        else:
            assert own["role"] == "follower", f"the tests' node is {own['role']}"
        dumps = [_dump(name) for name in self.names]
        for name, text in zip(self.names, dumps, strict=True):
            assert text == dumps[0], f"the dump of {name} is not that of {self.names[0]}"

    def stop(self) -> None:
        """Stop the other nodes and remove their files."""
        self._process.communicate(timeout=DEADLINE)
        for name in self.names[1:]:
            for path in (name, *name.parent.glob(f"{name.name}-*")):
                path.unlink(missing_ok=True)
            folder = name.with_name(f"{name.name}.raft")
            if folder.is_dir():
                for path in folder.iterdir():
                    path.unlink()
                folder.rmdir()

    def _statuses(self) -> list[dict[str, Any]]:
        own = open_node(self.config(NodeConfig(self.names[0], self._peers[0], self._peers)))
        told = [own.status()]
        for name, peer in zip(self.names[1:], self._peers[1:], strict=True):
            guest = attach_node(NodeConfig(name, peer, self._peers))
            assert guest is not None, f"nobody hosts {name}"
            try:
                told.append(guest.status())
            finally:
                guest.close()
        return told

    def _agreed(self) -> list[dict[str, Any]]:
        told = self._statuses()
        top = max(status["commit_index"] for status in told)
        keys = {(status["applied_index"], status["version"], status["digest"]) for status in told}
        return told if len(keys) == 1 and told[0]["applied_index"] == top else []

    def _eventually(self, check: Callable[[], list[dict[str, Any]]], what: str) -> list[dict[str, Any]]:
        end = time.monotonic() + DEADLINE
        while not (found := check()):
            assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}; {self._statuses()}"
            time.sleep(0.02)
        return found


def start_group(name: Path) -> None:
    """The group of a test database that was just named, as ``RAFTSUITE_NODES`` and ``RAFTSUITE_ATTACHED`` say."""
    GROUPS[str(name)] = Group(
        name, nodes=int(os.environ["RAFTSUITE_NODES"]), attached=os.environ["RAFTSUITE_ATTACHED"] == "1"
    )


def stop_group(name: Path) -> None:
    """Stop it; the tests' node is closed already."""
    group = GROUPS.pop(str(name), None)
    if group is not None:
        group.stop()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _dump(name: Path) -> str:
    # By its path: the package `tests` of this project is not on the path, and must not be.
    path = Path(__file__).resolve().parents[3] / "support" / "dumps.py"
    spec = importlib.util.spec_from_file_location("raftsuite_dumps", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.dump(name)
    return text
