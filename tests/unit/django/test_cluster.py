"""The layout of a local cluster: ports, folders, secret, and what each node is told."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from django_raftsqlite.configuration import configure
from django_raftsqlite.environment import merge
from django_raftsqlite.management.cluster import ClusterError, PlannedNode, plan_cluster, require_free_ports
from tests.support.ports import free_ports


def plan(folder: Path, **changed: Any) -> tuple[PlannedNode, ...]:
    return plan_cluster(folder, **{"nodes": 3, "port": 8000, "raft_port": 7100, "aliases": ["default"], **changed})


def test_nodes_have_consecutive_ports_and_a_folder_each(tmp_path: Path) -> None:
    nodes = plan(tmp_path)
    assert [node.name for node in nodes] == ["node1", "node2", "node3"]
    assert [node.url for node in nodes] == [f"http://127.0.0.1:{port}/" for port in (8000, 8001, 8002)]
    assert [node.addresses["default"] for node in nodes] == [f"127.0.0.1:{port}" for port in (7100, 7101, 7102)]
    assert all(node.folder.is_dir() and node.folder.stat().st_mode & 0o077 == 0 for node in nodes)


def test_what_a_node_is_told_makes_it_that_node(tmp_path: Path) -> None:
    """Merged over a project's settings, whatever these say."""
    nodes = plan(tmp_path)
    for node in nodes:
        options = {"timeout": 2, "host": False}
        settings: dict[str, Any] = {"ENGINE": "django_raftsqlite", "NAME": "x", "OPTIONS": options}
        merge(settings, json.loads(json.dumps(node.settings["default"])))
        config = configure("default", settings).node
        assert config.address == node.addresses["default"]
        assert config.peers == tuple(other.addresses["default"] for other in nodes)
        assert (config.name.parent, config.timeout, config.host) == (node.folder, 2.0, True)


def test_every_alias_is_a_group_of_its_own(tmp_path: Path) -> None:
    nodes = plan(tmp_path, nodes=2, aliases=["default", "other"])
    assert [dict(node.addresses) for node in nodes] == [
        {"default": "127.0.0.1:7100", "other": "127.0.0.1:7102"},
        {"default": "127.0.0.1:7101", "other": "127.0.0.1:7103"},
    ]
    names = {node.settings[alias]["NAME"] for node in nodes for alias in ("default", "other")}
    assert len(names) == 4


def test_the_secret_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    first, second = plan(folder), plan(folder)
    path = folder / "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_text().strip()
    assert len(secret) == 64
    assert {node.settings["default"]["OPTIONS"]["secret"] for node in (*first, *second)} == {secret}
    assert plan(tmp_path / "another")[0].settings["default"]["OPTIONS"]["secret"] != secret


@pytest.mark.parametrize("changed", [{"nodes": 5}, {"raft_port": 7200}, {"aliases": ["default", "other"]}])
def test_a_folder_keeps_the_members_it_was_made_with(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Membership is fixed and an address is a member's identity; the pages' ports may change."""
    plan(tmp_path)
    plan(tmp_path, port=9000)
    with pytest.raises(ClusterError, match="holds a cluster of 3 nodes with --raft-port 7100 for default"):
        plan(tmp_path, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": 0}, "--nodes is 0: write a number from 1"),
        ({"port": 0}, "--port 0 leaves no room for the ports 0 to 2"),
        ({"port": 65534}, "--port 65534 leaves no room for the ports 65534 to 65536"),
        ({"raft_port": 65534}, "--raft-port 65534 leaves no room"),
        ({"raft_port": 8002}, r"the ports of --port \(8000 to 8002\) and --raft-port \(8002 to 8004\) overlap"),
        ({"raft_port": 7995, "aliases": ["a", "b"]}, "overlap"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        plan(tmp_path / "new", **changed)
    assert not (tmp_path / "new").exists()


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(ClusterError, match=r"cluster\.json is damaged"):
        plan(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="cannot be made"):
        plan(tmp_path / "file" / "folder")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        port, raft_port = free_ports(2)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        nodes = plan(tmp_path, nodes=1, port=port, raft_port=raft_port)
        with pytest.raises(ClusterError, match=f"port {port}, which node1 needs.*write another --port"):
            require_free_ports(nodes)
    require_free_ports(nodes)
