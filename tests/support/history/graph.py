"""Who must come before whom, and the shortest contradiction in it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import networkx as nx

from .record import Anomaly, Operation

Kind = str
"""``ww``, ``wr``, ``rw`` as in Adya's thesis; ``rt`` is real time: one ended before the other began."""

SEARCHES: tuple[frozenset[Kind], ...] = (
    frozenset({"ww"}),
    frozenset({"ww", "wr"}),
    frozenset({"ww", "wr", "rw"}),
    frozenset({"ww", "wr", "rw", "rt"}),
)
"""From the worst to the mildest, so that a cycle is named by the worst it shows."""

MAX_STARTS = 300  # of a knot of thousands, a short cycle will do


class Dependencies:
    """Edges between operations; each has, by kind, the reason for it."""

    def __init__(self, kinds: Collection[Kind]) -> None:
        self._kinds = frozenset(kinds)
        self._operations: dict[str, Operation] = {}
        self._edges: dict[tuple[str, str], dict[Kind, str]] = {}

    def add(self, before: Operation, after: Operation, kind: Kind, reason: str) -> None:
        """``before`` must take effect before ``after``."""
        if kind not in self._kinds or before.name == after.name:
            return
        for operation in (before, after):
            self._operations[operation.name] = operation
        self._edges.setdefault((before.name, after.name), {}).setdefault(kind, reason)

    def __iter__(self) -> Iterator[tuple[str, str, Kind]]:
        for (before, after), reasons in self._edges.items():
            for kind in reasons:
                yield before, after, kind

    def anomalies(self) -> list[Anomaly]:
        """One cycle for each knot of operations that cannot be ordered."""
        found: list[Anomaly] = []
        told: set[str] = set()
        for kinds in SEARCHES:
            edges = [pair for pair, reasons in self._edges.items() if kinds & reasons.keys()]
            graph = nx.DiGraph(edges)
            for knot in nx.strongly_connected_components(graph):
                if len(knot) > 1 and not told & knot:
                    told |= knot
                    found.append(self._told(_shortest_cycle(graph.subgraph(knot)), kinds))
        return found

    def _told(self, cycle: list[str], kinds: frozenset[Kind]) -> Anomaly:
        lines = []
        used = []
        for before, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            reasons = self._edges[before, after]
            kind = next(kind for kind in ("ww", "wr", "rw", "rt") if kind in kinds & reasons.keys())
            used.append(kind)
            lines.append(f"  {before} before {after} ({kind}: {reasons[kind]})")
        text = "these cannot be put in an order:\n" + "\n".join(lines)
        return Anomaly(_name(used), text, tuple(self._operations[name] for name in cycle))


def _name(kinds: list[Kind]) -> str:
    if "rt" in kinds:
        return "stale" if "rw" in kinds else "out of time"
    if "rw" in kinds:
        return "G-single (lost update or read skew)" if kinds.count("rw") == 1 else "G2 (write skew)"
    return "G1c (circular information flow)" if "wr" in kinds else "G0 (write cycle)"


def _shortest_cycle(graph: nx.DiGraph) -> list[str]:
    best: list[str] | None = None
    for start in itertools.islice(graph, MAX_STARTS):
        # The path back from each successor; in a strongly connected graph there is one.
        back = nx.single_target_shortest_path(graph, start)
        for successor in graph.successors(start):
            if best is None or len(back[successor]) < len(best):
                best = back[successor]
        if best is not None and len(best) == 2:
            break
    assert best is not None
    return [best[-1], *best[:-1]]
