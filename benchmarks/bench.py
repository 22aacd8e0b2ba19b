"""Django's SQLite backend, one node, and three nodes of ours, side by side on one machine.

``python -m benchmarks.bench [--quick] [--processes N] [--only create,get] [--no-memory] [--strict]``

All contenders take turns within each round, so that the machine's noise hits all alike; what is printed is the median
of the rounds. Clients are threads of one process, each with a connection of its own; with ``--processes`` they are
spread over as many processes. Three nodes share one machine here: in a real group each has processors of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import apsw
import django
from rich.console import Console
from rich.table import Table

from tests.process.cluster import ROOT

from .contenders import Contender, Field, Sample, worker_of
from .memory import print_memory

OPERATIONS = ("create", "update", "transfer", "get", "page")
CLIENTS = (1, 16)
LEGEND = """\
Three nodes: "at the leader" and "at a follower" have all clients in that node's process, "spread" has client n in the
process of node n modulo 3. Where one process has 16 threads, they share its interpreter lock."""
Results = dict[tuple[str, str, int], list[Sample]]


def main() -> int:
    """Run all of it; with --strict the exit status is 1 when a target was missed."""
    options = arguments()
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
    contenders = line_up(field, options.processes)
    results = race(console, contenders, options)
    for clients in CLIENTS:
        console.print(table(results, contenders, options.only, clients))
    console.print(LEGEND, highlight=False)
    return judge(console, results, options.only)


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


def line_up(field: Field, processes: int) -> list[Contender]:
    """All contenders, ready."""
    one = field.group(1)
    three = field.group(3)
    leader = three.wait_leader()
    followers = three.followers()
    nodes = [leader, *followers]
    if processes == 1:
        return [
            field.sqlite3(),
            Contender("one node", [worker_of(one[0])]),
            Contender("three: at the leader", [worker_of(leader)]),
            Contender("three: at a follower", [worker_of(followers[0])]),
            Contender("three: spread", [worker_of(node) for node in nodes]),
        ]
    return [
        field.sqlite3(processes),
        Contender("one node", [worker_of(one[0]), *(one[0].attach() for _ in range(processes - 1))]),
        Contender("three: at the leader", [worker_of(leader), *(leader.attach() for _ in range(processes - 1))]),
        Contender(
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


def rate(samples: list[Sample]) -> float:
    """Operations per second: the median round."""
    return statistics.median(sample.rate for sample in samples)


def quantile(samples: list[Sample], share: float) -> float:
    """Milliseconds: the median round's."""
    return statistics.median(sample.quantile(share) for sample in samples)


def ratio(results: Results, contender: str, operation: str, clients: int) -> float:
    """Of sqlite3's rate, round by round; the median."""
    pairs = zip(results[contender, operation, clients], results["sqlite3", operation, clients], strict=True)
    return statistics.median(ours.rate / theirs.rate if theirs.rate else float("inf") for ours, theirs in pairs)


def table(results: Results, contenders: list[Contender], operations: list[str], clients: int) -> Table:
    """One line per operation and contender."""
    table = Table(title=f"{clients} client{'s' * (clients > 1)}", title_justify="left")
    for header in ("", "", "per second", "p50 ms", "p99 ms", "of sqlite3"):
        table.add_column(header, justify="left" if not header else "right")
    for operation in operations:
        for place, contender in enumerate(contenders):
            samples = results[contender.name, operation, clients]
            table.add_row(
                operation if place == 0 else "",
                contender.name,
                f"{rate(samples):,.0f}",
                f"{quantile(samples, 0.5):.2f}",
                f"{quantile(samples, 0.99):.2f}",
                f"{ratio(results, contender.name, operation, clients):.2f}",
            )
        table.add_section()
    return table


def judge(console: Console, results: Results, operations: list[str]) -> bool:
    """The targets, and whether they were met."""
    names = {name for name, _, _ in results}
    checks: list[tuple[str, float, bool]] = []
    for operation in ("get", "page"):
        if operation in operations:
            for name in sorted(names - {"sqlite3"}):
                found = ratio(results, name, operation, 1)
                checks.append((f"{operation}, {name}, 1 client: at least 0.9 of sqlite3's rate", found, found >= 0.9))
    if "create" in operations:
        found = quantile(results["three: at the leader", "create", 1], 0.5)
        checks.append(("create, three nodes, 1 client: p50 at most 2 ms", found, found <= 2))
        for name in sorted(name for name in names if name.startswith("three")):
            found = ratio(results, name, "create", 16)
            checks.append((f"create, {name}, 16 clients: at least 0.3 of sqlite3's rate", found, found >= 0.3))
    for text, found, met in checks:
        console.print(f"{'met   ' if met else 'MISSED'} {text}: {found:.2f}", highlight=False)
    return all(met for _, _, met in checks)


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
