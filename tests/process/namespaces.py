"""A network of its own for each node of a cluster: real TCP, on links that lose without a word what goes one way."""

from __future__ import annotations

import itertools
import os
import subprocess

from .cluster import Cluster

_NUMBERS = itertools.count()
_LOST = "02:00:00:00:ff:ff"
"""Nobody's address: what is sent there, the bridge brings to everybody, and nobody takes it."""


class NotAllowed(Exception):
    """This machine makes no network namespaces for us (root and iproute2 are needed). The text says why."""


class Namespaces:
    """``size`` network namespaces on one bridge; a node of the cluster lives in each. As :class:`.proxy.Network`, but
    nothing is kept: what is held back is lost, and TCP sends it again when it may, after longer and longer pauses.

    ``hosts`` are the nodes' addresses. They are loopback ones, which need no TLS; here they are led over the bridge.
    Raises NotAllowed, and leaves nothing behind then.
    """

    def __init__(self, size: int = 3) -> None:
        self.hosts = [f"127.77.0.{number + 1}" for number in range(size)]
        name = f"raft{os.getpid()}-{next(_NUMBERS)}"
        self._bridge = f"{name}-bridge"
        self._names = {host: f"{name}-{number}" for number, host in enumerate(self.hosts)}
        self._made: list[str] = []
        try:
            self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            raise NotAllowed(getattr(error, "stderr", None) or str(error)) from error

    def _make(self) -> None:
        for name in [self._bridge, *self._names.values()]:
            _ip("netns", "add", name)
            self._made.append(name)
        _ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "bridge", "up")
        for number, (host, name) in enumerate(self._names.items()):
            link = ("netns", name, "address", _mac(host), "type", "veth", "peer", "name", f"to{number}")
            _ip("link", "add", "wire", *link, "netns", self._bridge)
            _ip("-n", self._bridge, "link", "set", f"to{number}", "master", "bridge", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            # Loopback addresses that are not those of this machine's loopback.
            for which in ("all", "wire"):
                path = f"/proc/sys/net/ipv4/conf/{which}/route_localnet"
                _ip("netns", "exec", name, "sh", "-c", f"echo 1 > {path}")
            _ip("-n", name, "address", "add", f"{host}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
            _ip("-n", name, "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
        for source, target in itertools.permutations(self.hosts, 2):
            self._lead(source, target, _mac(target))

    def install(self, cluster: Cluster) -> None:
        """Have the nodes of a cluster, which was made with ``hosts``, live here; before it is started."""
        for node in cluster:
            node.environment["TEST_LAUNCHER"] = f"ip netns exec {self._names[_host(node.address)]}"

    def hold(self, source: str, target: str) -> None:
        """Let nothing from the member ``source`` through to ``target``."""
        self._lead(_host(source), _host(target), _LOST)

    def release(self, source: str, target: str) -> None:
        """Let it through again."""
        self._lead(_host(source), _host(target), _mac(_host(target)))

    def close(self) -> None:
        """Take it all away; processes that still run there are alone from then on."""
        while self._made:
            _ip("netns", "delete", self._made.pop())

    def _lead(self, source: str, target: str, mac: str) -> None:
        name = self._names[source]
        _ip("-n", name, "neighbour", "replace", target, "lladdr", mac, "dev", "wire", "nud", "permanent")


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _mac(host: str) -> str:
    return f"02:00:00:00:00:{int(host.rpartition('.')[2]):02x}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
