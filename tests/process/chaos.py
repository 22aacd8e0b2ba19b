"""kill -9 of random nodes under load, and what the load's own records say afterwards."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.history import Operation, load

from .cluster import Cluster, ClusterNode, Worker
from .namespaces import Namespaces
from .proxy import Network

KILL_EVERY = (1.5, 4.0)
DOWN_FOR = (0.0, 1.0)


class Chaos:
    """A load on every node of a cluster, restarted with its node.

    ``kinds`` maps a kind of work (see workloads) to its threads per process, node by node. With ``guests`` each node
    has a second process that attaches to the first, and takes the node over when that dies.
    """

    def __init__(
        self, cluster: Cluster, rng: random.Random, kinds: dict[str, tuple[int, ...]], *, guests: bool = False
    ) -> None:
        self.cluster = cluster
        self.kills = 0
        self.leaders_killed = 0
        self._rng = rng
        self._kinds = kinds
        self._starts = 0
        self._protocols = cluster.folder / "protocols"
        self._protocols.mkdir()
        self._histories = cluster.folder / "histories"
        self._histories.mkdir()
        self._guests: dict[ClusterNode, Worker] = {node: node.attach() for node in cluster} if guests else {}
        self.disturbed: Counter[str] = Counter()
        self.began = time.monotonic_ns()

    def load(self, node: ClusterNode, worker: Worker | None = None) -> None:
        """Start the load in the node's main process, or in another one."""
        worker = worker or node.worker
        assert worker is not None
        self._starts += 1
        tag = f"n{node.index}p{self._starts}"
        history = {"path": str(self._histories / tag), "node": f"node {node.index}", "started": self.began}
        worker.call(
            "start_load",
            path=str(self._protocols / tag),
            seed=self._rng.randrange(2**32),
            tag=tag,
            kinds={kind: threads[node.index] for kind, threads in self._kinds.items()},
            history=history,
        )

    def start(self) -> None:
        """Load in all processes."""
        self.began = time.monotonic_ns()
        for node in self.cluster:
            self.load(node)
        for node, guest in self._guests.items():
            self.load(node, guest)

    def kill_at_random(self, seconds: float) -> None:
        """Kill a random node every few seconds, the leader as often as both others, and start it again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._rng.uniform(*KILL_EVERY))
            leader = self.cluster.leader()
            followers = [node for node in self.cluster if node is not leader]
            victim = leader if leader is not None and self._rng.random() < 0.5 else self._rng.choice(followers)
            self.kills += 1
            self.leaders_killed += victim is leader
            victim.kill()
            time.sleep(self._rng.uniform(*DOWN_FOR))
            victim.start()
            self.load(victim)

    def disturb_at_random(self, network: Network | Namespaces, seconds: float) -> None:
        """Kill, stop and cut off random nodes; a node that stands still or hears nothing is not dead.

        ``network`` is between all nodes. Afterwards all nodes run and hear each other.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._rng.uniform(0.3, 1.5))
            leader = self.cluster.leader()
            victim = (
                leader if leader is not None and self._rng.random() < 0.5 else self._rng.choice(self.cluster.nodes)
            )
            kind = self._rng.choice(["kill", "stop", "isolate", "deafen", "mute", "part"])
            self.disturbed[kind] += 1
            pause = self._rng.uniform(0.2, 2.5)
            if kind == "kill":
                victim.kill()
                time.sleep(self._rng.uniform(*DOWN_FOR))
                victim.start()
                self.load(victim)
                continue
            assert victim.worker is not None
            held = self._links(kind, victim)
            if kind == "stop":
                victim.worker.pause()
            for source, target in held:
                network.hold(source.address, target.address)
            time.sleep(pause)
            for source, target in held:
                network.release(source.address, target.address)
            if kind == "stop":
                victim.worker.signal(signal.SIGCONT)

    def disturb_processes_at_random(self, network: Network | Namespaces, seconds: float) -> None:
        """Kill and stop hosts, attached processes and leaders, and cut links, one of them in the middle of another.

        Pauses are shorter or longer than an election takes. Afterwards all run and hear each other.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._rng.uniform(0.2, 1.5))
            self._disturb(network)

    def _disturb(self, network: Network | Namespaces, within: ClusterNode | None = None) -> None:
        """``within``: while a process of that node, which may be its host, stands still, or its links are cut."""
        leader = self.cluster.leader()
        of_leader = leader is not None and self._rng.random() < 0.4
        node = leader if leader is not None and of_leader else self._rng.choice(self.cluster.nodes)
        worker, role = self._process_of(node, hosting=of_leader or self._rng.random() < 0.5)
        kind = self._rng.choice(["kill", "kill", "stop", "stop", "isolate", "deafen", "mute", "part"])
        pause = self._rng.uniform(0.05, 0.35) if self._rng.random() < 0.5 else self._rng.uniform(1.0, 3.0)
        if kind == "kill" and node is within:
            kind = "part"  # a process that is to take over would wait for one that stands still
        if kind == "kill":
            self.disturbed[f"kill {'leader' if node is leader and role == 'host' else role}"] += 1
            self._replace(node, worker)
            return
        if kind == "stop":
            self.disturbed[f"stop {role} {'shortly' if pause < 0.5 else 'long'}"] += 1
            worker.pause()
        else:
            self.disturbed[kind] += 1
        held = self._links(kind, node)
        for source, target in held:
            network.hold(source.address, target.address)
        time.sleep(pause / 2)
        if within is None and self._rng.random() < 0.3:
            self.disturbed["one within another"] += 1
            self._disturb(network, within=node)
        time.sleep(pause / 2)
        for source, target in held:
            network.release(source.address, target.address)
        if kind == "stop":
            worker.signal(signal.SIGCONT)

    def _process_of(self, node: ClusterNode, *, hosting: bool) -> tuple[Worker, str]:
        """The process that hosts the node, or the one that does not."""
        assert node.worker is not None
        both = [node.worker, self._guests[node]]
        status = node.status()
        host = status["host"]["pid"] if status is not None else node.worker.pid
        worker = next(worker for worker in both if (worker.pid == host) == hosting)
        return worker, "host" if hosting else "guest"

    def _replace(self, node: ClusterNode, worker: Worker) -> None:
        """kill -9 of a process, and another one in its place."""
        self.kills += 1
        worker.kill()
        time.sleep(self._rng.uniform(*DOWN_FOR))
        if worker is node.worker:
            node.start()
            self.load(node)
        else:
            self._guests[node] = node.attach()
            self.load(node, self._guests[node])

    def _links(self, kind: str, victim: ClusterNode) -> list[tuple[ClusterNode, ClusterNode]]:
        """The directions that are cut by a fault of this kind."""
        others = [node for node in self.cluster if node is not victim]
        cut: dict[str, list[tuple[ClusterNode, ClusterNode]]] = {
            "isolate": [(a, b) for o in others for a, b in ((victim, o), (o, victim))],
            "deafen": [(other, victim) for other in others],
            "mute": [(victim, other) for other in others],
            "part": [(victim, others[0]), (others[0], victim)],
        }
        return cut.get(kind, [])

    def kill_all(self) -> None:
        """kill -9 of all nodes at once, then start them again."""
        for node in self.cluster:
            assert node.worker is not None
            node.worker.signal(9)
        for node in self.cluster:
            node.kill()
        self.kills += len(self.cluster.nodes)
        self.cluster.start(migrate=False)

    def stop(self) -> None:
        """End the load on all nodes that run it."""
        for node in self.cluster:
            node.call("stop_load", wait=60)
        for guest in self._guests.values():
            guest.call("stop_load", wait=60)

    def record(self) -> Record:
        """What all threads of all processes wrote down."""
        return Record(self._protocols.iterdir())

    def processes(self) -> list[Worker]:
        """All that run."""
        return [*(node.worker for node in self.cluster if node.worker is not None), *self._guests.values()]

    def history(self) -> list[Operation]:
        """What all threads of all processes recorded."""
        return load(self._histories.iterdir())


class Record:
    """The outcomes of all attempts: ``tried``, ``yes``, ``no`` map a kind to texts; ``wrong`` is what may not be."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.tried: dict[str, set[str]] = {}
        self.yes: dict[str, set[str]] = {}
        self.no: dict[str, set[str]] = {}
        self.wrong: list[str] = []
        self.checked = 0
        self.unknown: list[str] = []
        self.reasons: Counter[str] = Counter()
        for outcome, kind, text, detail in _lines(paths):
            if outcome == "wrong":
                self.wrong.append(f"{kind} {text}: {detail}")
            elif outcome == "seen":
                self.checked += 1
            elif outcome == "try":
                self.tried.setdefault(kind, set()).add(text)
            else:
                if outcome in ("yes", "no"):
                    getattr(self, outcome).setdefault(kind, set()).add(text)
                self.reasons[f"{outcome} {kind} {detail.split(':')[0]}".strip()] += 1
                if outcome == "unknown":
                    self.unknown.append(f"{text}: {detail}")

    def check_rows(self, kind: str, texts: Iterable[str]) -> None:
        """Acknowledged rows are there exactly once, refused ones not at all, the others at most once."""
        found = Counter(texts)
        yes, no, tried = (part.get(kind, set()) for part in (self.yes, self.no, self.tried))
        assert yes, f"no {kind} was ever acknowledged: {self.reasons}"
        doubled = {text: n for text, n in found.items() if n > 1}
        assert not doubled, f"applied more than once: {_some(doubled)}"
        assert not yes - found.keys(), f"acknowledged and lost: {_some(yes - found.keys())}"
        assert not no & found.keys(), f"refused and yet there: {_some(no & found.keys())}"
        assert not found.keys() - tried, f"never written by anybody: {_some(found.keys() - tried)}"

    def check_counter(self, kind: str, value: int) -> None:
        """A counter lies between its acknowledged increments and those that were not surely refused."""
        yes, no, tried = (len(part.get(kind, ())) for part in (self.yes, self.no, self.tried))
        assert yes <= value <= tried - no, f"{kind}: {value} is not between {yes} and {tried - no}"


def _lines(paths: Iterable[Path]) -> Iterator[tuple[str, str, str, str]]:
    for path in paths:
        for line in path.read_text().splitlines():
            outcome, kind, text, detail = json.loads(line)
            yield outcome, kind, text, detail


def _some(items: Iterable[object]) -> str:
    listed = sorted(map(str, items))
    return f"{len(listed)}: {listed[:5]}"
