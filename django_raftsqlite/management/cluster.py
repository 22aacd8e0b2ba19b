"""The folder of a local cluster: its secret, its shape, and what each node's environment says."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
HIGHEST_PORT = 65535


class ClusterError(Exception):
    """The cluster cannot be started as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """One node: ``number`` counts from 1, ``port`` is its pages', ``addresses`` are its members by alias.

    ``settings`` maps an alias to what its environment variable says.
    """

    number: int
    port: int
    folder: Path
    addresses: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """``"node1"``"""
        return f"node{self.number}"

    @property
    def url(self) -> str:
        """Where its pages are."""
        return f"http://{LOOPBACK}:{self.port}/"


def plan_cluster(
    directory: Path, *, nodes: int, port: int, raft_port: int, aliases: Sequence[str]
) -> tuple[PlannedNode, ...]:
    """Lay out ``nodes`` nodes with consecutive ports, and make their folders in ``directory``.

    Every alias is a group of its own, with its own range of Raft ports. An address is a member's identity and
    membership is fixed, so a folder keeps the shape it was made with. Raises ClusterError.
    """
    if nodes < 1:
        raise ClusterError(f"--nodes is {nodes}: write a number from 1, best 3 or 5")
    last = raft_port + nodes * len(aliases) - 1
    for option, first, end in (("--port", port, port + nodes - 1), ("--raft-port", raft_port, last)):
        if not 1 <= first <= end <= HIGHEST_PORT:
            raise ClusterError(f"{option} {first} leaves no room for the ports {first} to {end}: write a smaller one")
    if port <= last and raft_port <= port + nodes - 1:
        raise ClusterError(
            f"the ports of --port ({port} to {port + nodes - 1}) and --raft-port ({raft_port} to {last}) overlap"
        )
    _make_private(directory)
    _keep_shape(directory, {"nodes": nodes, "raft_port": raft_port, "aliases": list(aliases)})
    secret = _secret(directory)
    members = {
        alias: [f"{LOOPBACK}:{raft_port + group * nodes + number}" for number in range(nodes)]
        for group, alias in enumerate(aliases)
    }
    planned = []
    for index in range(nodes):
        folder = directory / f"node{index + 1}"
        _make_private(folder)
        settings = {
            alias: {
                "NAME": str(folder / f"{alias}.sqlite3"),
                "OPTIONS": {"node": members[alias][index], "peers": members[alias], "secret": secret, "host": True},
            }
            for alias in aliases
        }
        addresses = {alias: members[alias][index] for alias in aliases}
        planned.append(PlannedNode(index + 1, port + index, folder, addresses, settings))
    return tuple(planned)


def require_free_ports(nodes: Sequence[PlannedNode]) -> None:
    """Raises ClusterError that names the first port somebody else listens on."""
    for node in nodes:
        raft_ports = [int(address.rpartition(":")[2]) for address in node.addresses.values()]
        for option, port in (("--port", node.port), *(("--raft-port", port) for port in raft_ports)):
            with socket.socket() as probe:
                # As servers do: a port whose old connections are still timing out is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((LOOPBACK, port))
                except OSError as error:
                    raise ClusterError(
                        f"port {port}, which {node.name} needs, cannot be used ({error.strerror}): "
                        f"stop what listens there, or write another {option}"
                    ) from error


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _keep_shape(directory: Path, shape: Mapping[str, Any]) -> None:
    path = directory / "cluster.json"
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        path.write_text(json.dumps(shape, indent=2) + "\n")
        return
    except ValueError as error:
        raise ClusterError(f"{path} is damaged ({error}): use another --dir") from error
    if found != shape:
        raise ClusterError(
            f"{directory} holds a cluster of {found.get('nodes')} nodes with --raft-port {found.get('raft_port')} "
            f"for {', '.join(found.get('aliases', []))}, and its members cannot be changed: "
            "use these values, or another --dir"
        )


def _secret(directory: Path) -> str:
    path = directory / "secret"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        secret = secrets.token_hex(32)
    # Never readable by others, not even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
    return secret
