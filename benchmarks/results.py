"""What was measured: tables of it, and whether the targets were met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from .contenders import Contender, Sample

PLAIN = "sqlite3"
Results = dict[tuple[str, str, int], list[Sample]]
"""The rounds' samples by contender, operation and number of clients."""
Measure = Callable[[Sample], float]
Check = tuple[str, float, bool]
"""What was to be, what was found, and whether it was met."""


def rate(sample: Sample) -> float:
    """Operations per second."""
    return sample.rate


def p50(sample: Sample) -> float:
    """Milliseconds."""
    return sample.quantile(0.5)


def p99(sample: Sample) -> float:
    """Milliseconds."""
    return sample.quantile(0.99)


def median(samples: list[Sample], measure: Measure) -> float:
    """The median round's."""
    return statistics.median(map(measure, samples))


def ratio(
    results: Results, contender: str, rival: str, operation: str, clients: int, measure: Measure = rate
) -> float:
    """Of the rival's, round by round; the median."""
    pairs = zip(results[contender, operation, clients], results[rival, operation, clients], strict=True)
    return statistics.median(
        measure(ours) / measure(theirs) if measure(theirs) else float("inf") for ours, theirs in pairs
    )


def table(results: Results, contenders: Sequence[Contender], operations: Sequence[str], clients: int) -> Table:
    """One line per operation and contender."""
    against = any(contender.rival for contender in contenders)
    table = Table(title=f"{clients} client{'s' * (clients > 1)}", title_justify="left")
    for header in ("", "", "per second", "p50 ms", "p99 ms", "of sqlite3", *(["of PostgreSQL"] if against else [])):
        table.add_column(header, justify="left" if not header else "right")
    for operation in operations:
        for place, contender in enumerate(contenders):
            samples = results[contender.name, operation, clients]
            cells = [
                operation if place == 0 else "",
                contender.name,
                f"{median(samples, rate):,.0f}",
                f"{median(samples, p50):.2f}",
                f"{median(samples, p99):.2f}",
                f"{ratio(results, contender.name, PLAIN, operation, clients):.2f}",
            ]
            if contender.rival:
                cells.append(f"{ratio(results, contender.name, contender.rival, operation, clients):.2f}")
            table.add_row(*cells)
        table.add_section()
    return table


def judge(console: Console, results: Results, contenders: Sequence[Contender], operations: Sequence[str]) -> bool:
    """Print the targets, and whether they were met; whether all were."""
    ours = [contender for contender in contenders if contender.ours]
    checks = [
        *against_sqlite3(results, ours, operations),
        *against_postgresql(results, ours, operations),
    ]
    for text, found, met in checks:
        console.print(f"{'met   ' if met else 'MISSED'} {text}: {found:.2f}", highlight=False)
    return all(met for _, _, met in checks)


def against_sqlite3(results: Results, ours: Sequence[Contender], operations: Sequence[str]) -> list[Check]:
    """Reads, creations and the slowest of the writers."""
    checks: list[Check] = []
    for operation in ("get", "page"):
        for name in (contender.name for contender in ours if operation in operations):
            found = ratio(results, name, PLAIN, operation, 1)
            checks.append((f"{operation}, {name}, 1 client: at least 0.9 of sqlite3's rate", found, found >= 0.9))
    three = [contender.name for contender in ours if contender.replicated]
    if "create" in operations:
        found = median(results[three[0], "create", 1], p50)
        checks.append((f"create, {three[0]}, 1 client: p50 at most 2 ms", found, found <= 2))
        for name in three:
            found = ratio(results, name, PLAIN, "create", 16)
            checks.append((f"create, {name}, 16 clients: at least 0.3 of sqlite3's rate", found, found >= 0.3))
    for operation in ("create", "update", "transfer"):
        for name in three if operation in operations else ():
            found = ratio(results, name, PLAIN, operation, 16, p99)
            checks.append((f"{operation}, {name}, 16 clients: p99 at most 0.2 of sqlite3's", found, found <= 0.2))
    return checks


def against_postgresql(results: Results, ours: Sequence[Contender], operations: Sequence[str]) -> list[Check]:
    """Transfers, on three nodes each."""
    checks: list[Check] = []
    for contender in ours if "transfer" in operations else ():
        if contender.replicated and contender.rival:
            name = contender.name
            found = ratio(results, name, contender.rival, "transfer", 16)
            checks.append((f"transfer, {name}, 16 clients: at least 0.9 of PostgreSQL's rate", found, found >= 0.9))
            found = ratio(results, name, contender.rival, "transfer", 1, p50)
            checks.append((f"transfer, {name}, 1 client: p50 at most 1.5 of PostgreSQL's", found, found <= 1.5))
    return checks
