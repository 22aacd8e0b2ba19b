"""Nodes that find each other by DNS: real nodes, and a real name server on loopback."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.discovery import parse
from django_raftsqlite.exceptions import Unavailable
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.process import ProcessNode
from tests.support.nameserver import NameServer
from tests.support.nodes import Group, eventually, read, write
from tests.support.ports import free_ports

NAME = "_raft._tcp.example.org"


class Sought(Group):
    """Nodes whose settings name nobody but a name in DNS."""

    def __init__(self, folder: Path, peers: Sequence[str], url: str) -> None:
        self.peers = tuple(peers)
        self.configs = [
            NodeConfig(
                name=folder / f"n{number}.sqlite3",
                address=address,
                peers=(),
                discovery=parse("peers", url, address, tls=False),
                secret="s" * 16,
            )
            for number, address in enumerate(self.peers)
        ]
        self.nodes = []

    def begin(self, number: int) -> ProcessNode:
        """Start the next node."""
        assert number == len(self.nodes)
        self.nodes.append(ProcessNode(self.configs[number]))
        self.nodes[number].backend()
        return self.nodes[number]

    def roles(self) -> dict[str, str]:
        return {member["address"]: member["role"] for member in self.nodes[0].status()["members"]}


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer(NAME) as server:
        yield server


@pytest.fixture
def sought(tmp_path: Path, server: NameServer) -> Iterator[Sought]:
    peers = [f"localhost:{port}" for port in free_ports(4)]
    made = Sought(tmp_path, peers, f"dns+srv://{NAME}?expect=3&server={server.address}")
    yield made
    made.close()


def problem(node: ProcessNode, text: str) -> None:
    eventually(lambda: text in (node.status()["problem"] or ""), f"its status says: {text}")


def test_three_nodes_found_a_group_when_all_three_are_there(sought: Sought, server: NameServer) -> None:
    """A node that sees nobody, itself alone, or a part of the others, begins nothing."""
    first = sought.begin(0)
    problem(first, "was not found")
    server.tell(sought.peers[:1])
    problem(first, "there is nobody to be asked")
    server.tell(sought.peers[:2])
    problem(first, "names 2 of the 3 nodes that found a group together")
    second = sought.begin(1)
    problem(second, "names 2 of the 3")
    with pytest.raises(Unavailable, match="names 2 of the 3"):
        write(first, "CREATE TABLE t (x)", timeout=0.1)
    server.tell(sought.peers[:3])
    problem(first, f"and lacks {sought.peers[2]}")
    with pytest.raises(Unavailable, match=f"lacks {sought.peers[2]}"):
        write(first, "CREATE TABLE t (x)", timeout=0.1)
    sought.begin(2)
    leader = sought.leader()
    write(sought.nodes[leader], "CREATE TABLE t (x)")
    assert set(sought.roles()) == set(sought.peers[:3])
    assert not sought.nodes[0].status()["waiting_to_join"]


def test_nodes_that_are_known_by_their_ip_addresses_found_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By A records, all on one port; the machine's resolver is asked."""
    known: list[str] = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> list[Any]:
        if host != "raft.example.org":
            return resolve(host, port, *rest, **more)
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in known]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    (port,) = free_ports(1)
    made = Sought(tmp_path, [f"{host}:{port}" for host in hosts], f"dns://raft.example.org:{port}?expect=3")
    try:
        for number in range(3):
            made.begin(number)
        problem(made.nodes[0], "raft.example.org was not found")
        known += hosts[:2]
        problem(made.nodes[2], "names 2 of the 3 nodes that found a group together")
        known += hosts[2:]
        write(made.nodes[made.leader()], "CREATE TABLE t (x)")
        assert set(made.roles()) == set(made.peers)
        made.settle()
    finally:
        made.close()


def founded(sought: Sought, server: NameServer) -> None:
    server.tell(sought.peers[:3])
    for number in range(3):
        sought.begin(number)
    write(sought.nodes[sought.leader()], "CREATE TABLE t (x)")
    sought.quiet()


def test_a_fourth_joins_and_one_that_lost_its_folder_comes_back(sought: Sought, server: NameServer) -> None:
    """Whatever DNS says by then: once there is a group, nobody founds another."""
    founded(sought, server)
    server.tell(sought.peers)
    sought.begin(3)
    eventually(lambda: sought.roles().get(sought.peers[3]) == "follower", "the fourth votes")
    write(sought.nodes[3], "INSERT INTO t VALUES (1)")
    lost = sought.configs[2]
    sought.nodes[2].close()
    shutil.rmtree(lost.folder)
    for file in lost.name.parent.glob(f"{lost.name.name}*"):
        file.unlink()
    # Three of the four, which are not those that founded the group.
    server.tell(sought.peers[1:])
    sought.restart(2)
    eventually(lambda: read(sought.nodes[2], "SELECT name FROM sqlite_schema WHERE name = 't'"), "it has the table")
    eventually(lambda: sought.roles().get(sought.peers[2]) in {"leader", "follower"}, "it votes again")
    assert len({node.status()["lineage"] for node in sought.open_nodes()}) == 1
    assert sought.settle()["digest"]


def test_members_need_no_name_server(sought: Sought, server: NameServer) -> None:
    """What the log knows counts."""
    founded(sought, server)
    server.tell([])
    asked = server.questions
    for number in range(3):
        sought.nodes[number].close()
        sought.restart(number)
        write(sought.nodes[sought.leader()], "INSERT INTO t VALUES (?)", number)
    assert sought.settle()["digest"]
    assert server.questions == asked


def test_a_node_that_joins_by_dns_founds_nothing(sought: Sought, server: NameServer) -> None:
    founded(sought, server)
    config = sought.configs[3]
    url = f"dns+srv://{NAME}?server={server.address}"
    sought.configs[3] = replace(config, discovery=parse("join", url, config.address, tls=False))
    joined = sought.begin(3)
    eventually(lambda: sought.roles().get(sought.peers[3]) == "follower", "it votes")
    assert not joined.status()["waiting_to_join"]


def test_a_name_server_that_does_not_answer_keeps_no_node_from_stopping(sought: Sought, server: NameServer) -> None:
    server.silent = True
    node = sought.begin(0)
    eventually(lambda: server.questions, "it asks")
    node.close()
    assert node.closed
