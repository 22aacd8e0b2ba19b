"""The resident memory that hosting a node adds to a Django process."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .contenders import Field, worker_of

ADDED_LIMIT = 60.0
GROWTH_LIMIT = 10.0
CLIENTS = 8
MB = 1024 * 1024


def print_memory(console: Console, field: Field, writes: int) -> bool:
    """Processes of each kind, fresh, after ``writes`` and after twice as many; whether the targets were met."""
    field.folder.mkdir()
    plain = field.sqlite3().workers[0]
    one, three = field.group(1), field.group(3)
    leader, follower = three.wait_leader(), three.followers()[0]
    measured = {
        "sqlite3": plain,
        "one node": worker_of(one[0]),
        "three: leader": worker_of(leader),
        "three: follower": worker_of(follower),
    }
    stages = [{name: worker.call("memory") for name, worker in measured.items()}]
    for _ in range(2):
        with console.status(f"{writes:,} writes each"):
            for worker in (plain, worker_of(one[0]), worker_of(leader)):
                worker.call("write", wait=1200, count=writes, clients=CLIENTS)
            one.converge(60)
            three.converge(60)
        stages.append({name: worker.call("memory") for name, worker in measured.items()})

    table = Table(title="Memory of the process, MB: resident (not shared)", title_justify="left")
    for header in ("", "fresh", f"after {writes:,} writes", f"after {2 * writes:,}", "added by hosting", "growth"):
        table.add_column(header, justify="right" if header else "left")
    verdicts = []
    for name in measured:
        mine, theirs = ([stage[who]["rss"] / MB for stage in stages] for who in (name, "sqlite3"))
        added = max(ours - reference for ours, reference in zip(mine, theirs, strict=True))
        growth = mine[2] - mine[1]
        cells = [f"{stage[name]['rss'] / MB:.1f} ({stage[name]['uss'] / MB:.1f})" for stage in stages]
        table.add_row(name, *cells, f"{added:.1f}", f"{growth:.1f}")
        verdicts.append((f"memory, {name}: hosting adds at most {ADDED_LIMIT:g} MB", added, added <= ADDED_LIMIT))
        verdicts.append(
            (f"memory, {name}: then grows by at most {GROWTH_LIMIT:g} MB", growth, growth <= GROWTH_LIMIT)
        )
    console.print(table)
    for text, found, met in verdicts[2:]:
        console.print(f"{'met   ' if met else 'MISSED'} {text}: {found:.1f}", highlight=False)
    return all(met for _, _, met in verdicts[2:])
