"""What a seed means: the group, its network, its clients and the list of its faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at ``at`` (seconds from the start), for ``lasts`` seconds.

    ``who`` and ``other`` are positions in the group, or -1 for the leader of that moment; ``amount`` depends on the
    kind.
    """

    at: float
    kind: str
    who: int
    other: int = 0
    amount: float = 0.0
    lasts: float = 0.0

    def __str__(self) -> str:
        who = "the leader" if self.who < 0 else f"n{self.who}"
        return f"{self.at:7.3f} {self.kind} {who} other=n{self.other} amount={self.amount:.3f} lasts={self.lasts:.3f}"


@dataclass(frozen=True)
class Scenario:
    """One run. Everything that is not here is drawn from the seed while it runs.

    ``spared``: faults hit a minority without the leader alone, which must lead to the end. ``damaged``: in the end a
    byte of a member's table is another one on its disk, which must be found and healed. ``restores``: backups are
    taken and put in the place of the content. ``archive``: the log is archived.
    """

    seed: int
    nodes: int
    seconds: float
    delay: tuple[float, float]
    faults: tuple[Fault, ...]
    clients: int
    guests: int
    keys: int
    timeout: float = 5.0
    lease_timeout: float = 1.0
    wal_limit: int = 64 * 1024 * 1024
    tail_entries: int = 16384
    log_entries: int = 10_000
    checkpoint_pages: int = 4000
    small_batches: bool = False
    small_parts: bool = False
    links_break: bool = False
    apply_per_tick: int = 2048
    payload: int = 20
    sync: float = 0.0
    reluctant: bool = False
    upgrade: bool = False
    spared: bool = False
    damaged: bool = False
    spares: int = 0
    restores: bool = False
    archive: bool = False

    def without(self, faults: set[int]) -> Scenario:
        """The same with fewer faults."""
        return replace(self, faults=tuple(f for number, f in enumerate(self.faults) if number not in faults))


KINDS = {
    "kill": 5,
    "power": 5,
    "kill_in_call": 6,
    "cut": 6,
    "isolate": 6,
    "halves": 3,
    "block": 6,
    "block_isolate": 4,
    "reset": 6,
    "stall": 6,
    "slow_sync": 4,
    "slow_apply": 4,
    "disk_error": 2,
    "disk_full": 2,
    "clock_jump": 4,
    "kill_guest": 3,
    "transfer": 3,
    "restart": 3,
    "blink_all": 1,
    "slow_network": 2,
}
"""How often each kind of fault is drawn."""

OF_ONE = {
    "kill",
    "power",
    "kill_in_call",
    "cut",
    "isolate",
    "block",
    "block_isolate",
    "reset",
    "stall",
    "slow_sync",
    "slow_apply",
    "disk_error",
    "disk_full",
    "clock_jump",
    "kill_guest",
    "foreign",
}
"""The kinds that concern one member and its links, and nobody else."""


def make(seed: int, *, kinds: dict[str, int] | None = None) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario {seed}")
    nodes = chance.choice([1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 5, 5, 6, 7])
    seconds = chance.choice([2.0, 4.0, 6.0])
    delay = chance.choice([(0.0002, 0.001), (0.0005, 0.003), (0.0005, 0.003), (0.002, 0.02), (0.01, 0.06)])
    weights = kinds or KINDS
    faults = []
    at = 0.0
    gap = chance.choice([0.1, 0.2, 0.4, 1.0])
    while True:
        at += chance.expovariate(1 / gap)
        if at >= seconds:
            break
        (kind,) = chance.choices(list(weights), list(weights.values()))
        who = -1 if chance.random() < 0.45 else chance.randrange(nodes)
        other = chance.randrange(nodes)
        faults.append(
            Fault(round(at, 4), kind, who, other, round(chance.random(), 4), round(chance.expovariate(1 / 0.8), 4))
        )
    # Drawn apart, so that the rest of a seed stays as it is.
    apart = random.Random(f"divergence {seed}")
    spared = nodes > 2 and apart.random() < 0.15
    if nodes > 2 and apart.random() < 0.4:
        for _ in range(apart.choice([1, 2])):
            when = round(apart.uniform(0.0, seconds), 4)
            faults.append(Fault(when, "foreign", apart.choice([-1, apart.randrange(nodes)])))
        faults.sort(key=lambda fault: fault.at)
    if spared:
        faults = [fault for fault in faults if fault.kind in OF_ONE]
    # The same for members that come and go.
    apart = random.Random(f"members {seed}")
    spares = 0
    if not spared and nodes < 6 and apart.random() < 0.35:
        spares, seconds = apart.choice([1, 2]), max(seconds, 4.0)
        for _ in range(apart.choice([3, 6, 9])):
            kind = apart.choice(["join", "join", "remove", "wipe", "wipe", "wipe"])
            when, who = round(apart.uniform(0.0, seconds), 4), apart.randrange(nodes + spares)
            faults.append(Fault(when, kind, who, amount=round(apart.random(), 4)))
        faults.sort(key=lambda fault: fault.at)
    # And for restores, and the archive.
    further = random.Random(f"restores {seed}")
    restores, archive = further.random() < 0.12, further.random() < 0.15
    if restores or archive:
        seconds = max(seconds, 4.0)
        faults.append(Fault(0.1, "back_up", -1))
        drawn = ["back_up"] * 3 + ["restore"] * 4 * restores + ["storage_down"] * 2 * archive
        for kind in further.choices(drawn, k=further.choice([6, 10, 15])):
            when, who = round(further.uniform(0.0, seconds), 4), further.choice([-1, further.randrange(nodes)])
            amount, lasts = round(further.random(), 4), round(further.expovariate(1 / 0.8), 4)
            faults.append(Fault(when, kind, who, amount=amount, lasts=lasts))
        faults.sort(key=lambda fault: fault.at)
    return Scenario(
        seed=seed,
        nodes=nodes,
        seconds=seconds,
        delay=delay,
        faults=tuple(faults),
        clients=chance.choice([1, 1, 2]),
        guests=chance.choice([0, 0, 1]),
        keys=chance.choice([1, 2, 3]),
        timeout=chance.choice([1.0, 3.0, 5.0]),
        lease_timeout=chance.choice([0.3, 1.0]),
        wal_limit=chance.choice([40_000, 64 * 1024 * 1024, 64 * 1024 * 1024]),
        tail_entries=chance.choice([4, 16384]),
        log_entries=chance.choice([5, 5, 30, 10_000]),
        checkpoint_pages=chance.choice([8, 4000, 4000]),
        small_batches=chance.random() < 0.4,
        small_parts=chance.random() < 0.3,
        links_break=chance.random() < 0.5,
        apply_per_tick=chance.choice([3, 2048]),
        payload=chance.choice([20, 200, 2000]),
        reluctant=chance.random() < 0.3 and not spared,
        sync=chance.choice([0.0, 0.0, 0.001, 0.01]),
        spared=spared,
        spares=spares,
        restores=restores,
        archive=archive,
        damaged=nodes > 2 and apart.random() < 0.5,
    )
