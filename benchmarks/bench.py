"""Django on SQLite, PostgreSQL with two standbys, one node and three nodes of ours, side by side on one machine.

``python -m benchmarks.bench [--quick] [--processes N] [--only get,page] [--no-postgresql] [--no-memory]``

All contenders take turns within each round, so that the machine's noise hits all alike; what is printed is the median
of the rounds. Clients are threads of one process, each with a connection of its own; with ``--processes`` they are
spread over as many processes. Three nodes share one machine here: in a real group each has processors of its own.
PostgreSQL (a primary and two standbys, one of which must have flushed a commit before it is answered) is installed
when it is missing and this is root's Debian; without it the others are measured all the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import apsw
import django
from rich.console import Console

from tests.process.cluster import ROOT

from .contenders import PROCESSORS, Contender, Field, worker_of
from .memory import print_memory
from .postgresql import PostgresqlMissing
from .results import PLAIN, Results, judge, table

OPERATIONS = ("create", "update", "transfer", "get", "page")
CLIENTS = (1, 16)
POSTGRESQL = "PostgreSQL, 3 nodes"
POSTGRESQL_SPREAD = "PostgreSQL: spread"
POSTGRESQL_PINNED = "PostgreSQL, pinned"
LEGEND = """\
Three nodes: "at the leader" and "at a follower" have all clients in that node's process, "spread" has client n in the
process of node n modulo 3. Where one process has 16 threads, they share its interpreter lock. "pinned": that process
keeps to one processor (see docs/processes.md); the other nodes and PostgreSQL's servers don't. Each is compared with
PostgreSQL whose clients are laid out alike."""


def main() -> int:
    """Run all of it; with --strict the exit status is 1 when a target was missed."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is ended
    console = Console(width=max(118, Console().width))
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.dir))
    field = Field(folder)
    try:
        console.print(describe(folder))
        met = not options.only or compete(console, field, options)
        field.close()
        if not options.no_memory:
            field = Field(folder / "memory")
            met = print_memory(console, field, 2_000 if options.quick else 50_000) and met
    finally:
        field.close()
        shutil.rmtree(folder, ignore_errors=True)
    return int(options.strict and not met)


def compete(console: Console, field: Field, options: argparse.Namespace) -> bool:
    """Measure and print; whether the targets were met."""
    contenders = [*postgresql(console, field, options), *line_up(field, options.processes)]
    contenders = [contender for contender in contenders if PROCESSORS or not contender.pinned]
    contenders.sort(key=lambda contender: contender.name != PLAIN)
    rivals = {contender.name for contender in contenders}
    for contender in contenders:
        contender.rival = contender.rival if contender.rival in rivals else ""
    results = race(console, contenders, options)
    for clients in CLIENTS:
        console.print(table(results, contenders, options.only, clients))
    console.print(LEGEND, highlight=False)
    return judge(console, results, contenders, options.only)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a look, not a measurement")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target was missed")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement (7)")
    parser.add_argument("--seconds", type=float, help="seconds of each contender in each round (0.7)")
    parser.add_argument("--processes", type=int, default=1, help="spread the clients over this many processes (1)")
    parser.add_argument(
        "--only", default=",".join(OPERATIONS), help="operations, separated by commas; empty for memory alone"
    )
    parser.add_argument("--no-postgresql", action="store_true", help="leave PostgreSQL out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measurement out")
    parser.add_argument("--dir", type=Path, default=ROOT / ".cache", help="where the databases are (.cache)")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 7)
    options.seconds = options.seconds or (0.4 if options.quick else 0.7)
    options.only = [name for name in options.only.split(",") if name]
    for name in options.only:
        if name not in OPERATIONS:
            parser.error(f"{name!r} is not an operation; there are {', '.join(OPERATIONS)}")
    options.dir.mkdir(parents=True, exist_ok=True)
    return options


def postgresql(console: Console, field: Field, options: argparse.Namespace) -> list[Contender]:
    """PostgreSQL with clients in one process, or as many as were asked for, and spread over three; or nothing."""
    if options.no_postgresql:
        return []
    try:
        with console.status("PostgreSQL is made ready"):
            group = field.postgresql()
    except PostgresqlMissing as error:
        console.print(f"PostgreSQL is left out: {error}", highlight=False)
        return []
    console.print(f"PostgreSQL {group.version}, files in {group.folder}", highlight=False)
    workers = field.clients_of(group, max(options.processes, 3))
    if options.processes > 1:
        return [Contender(POSTGRESQL, workers[: options.processes])]
    return [
        Contender(POSTGRESQL, workers[:1]),
        Contender(POSTGRESQL_PINNED, workers[:1], pinned=True),
        Contender(POSTGRESQL_SPREAD, workers),
    ]


def line_up(field: Field, processes: int) -> list[Contender]:
    """SQLite's and ours, ready."""
    one = field.group(1)
    three = field.group(3)
    leader = three.wait_leader()
    followers = three.followers()
    nodes = [leader, *followers]
    alone = partial(Contender, ours=True)
    group = partial(Contender, ours=True, replicated=True, rival=POSTGRESQL)
    pinned = partial(group, rival=POSTGRESQL_PINNED, pinned=True)
    if processes == 1:
        return [
            field.sqlite3(),
            alone("one node", [worker_of(one[0])]),
            group("three: at the leader", [worker_of(leader)]),
            group("three: at a follower", [worker_of(followers[0])]),
            pinned("leader, pinned", [worker_of(leader)]),
            pinned("follower, pinned", [worker_of(followers[0])]),
            group("three: spread", [worker_of(node) for node in nodes], rival=POSTGRESQL_SPREAD),
        ]
    return [
        field.sqlite3(processes),
        alone("one node", [worker_of(one[0]), *(one[0].attach() for _ in range(processes - 1))]),
        group("three: at the leader", [worker_of(leader), *(leader.attach() for _ in range(processes - 1))]),
        group(
            "three: spread",
            [worker_of(n) if place < 3 else n.attach() for place, n in enumerate((nodes * processes)[:processes])],
        ),
    ]


def race(console: Console, contenders: list[Contender], options: argparse.Namespace) -> Results:
    """Every contender in every round, in turn."""
    results: Results = {}
    for name in options.only:
        for clients in CLIENTS:
            with console.status(f"{name}, {clients} clients"):
                for contender in contenders:  # caches, connections, statement caches
                    contender.measure(name, clients, 0.2)
                for _ in range(options.rounds):
                    for contender in contenders:
                        sample = contender.measure(name, clients, options.seconds)
                        results.setdefault((contender.name, name, clients), []).append(sample)
    return results


def describe(folder: Path) -> str:
    """The machine, the versions, and what one fsync costs here."""
    return (
        f"{platform.machine()}, {os.cpu_count()} processors; Python {platform.python_version()}, "
        f"Django {django.__version__}, SQLite {apsw.sqlite_lib_version()} (APSW {apsw.apsw_version()}); "
        f"fdatasync of 4 KiB here: {fdatasync_ms(folder / 'fdatasync'):.2f} ms"
    )


def fdatasync_ms(path: Path, times: int = 200) -> float:
    """Median milliseconds of an overwrite and its fdatasync(2), as in a WAL file that is used again."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    taken = []
    try:
        os.pwrite(descriptor, b"x" * 4096 * times, 0)
        os.fsync(descriptor)
        for place in range(times):
            before = time.perf_counter()
            os.pwrite(descriptor, b"y" * 4096, place * 4096)
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - before)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(taken) * 1000


if __name__ == "__main__":
    sys.exit(main())
