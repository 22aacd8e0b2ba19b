"""``python -m tests.simulation.ablate``: within how many seeds the simulation misses each protection."""

from __future__ import annotations

import argparse
import os
import sys
import time

from . import scenario as scenarios
from .protections import PROTECTIONS, Protection
from .simulation import run


def first_failure(protection: Protection, seeds: range) -> tuple[int, str] | None:
    """The first seed that fails without the protection, and how; None if none does."""
    for seed in seeds:
        violation = run(scenarios.make(seed), switched_off=protection.off).violation
        if violation is not None:
            return seed, violation
    return None


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.ablate", *sys.argv[1:]])
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.ablate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many to try")
    parser.add_argument("--check", action="store_true", help="those that are to be missed, within as many as stated")
    parser.add_argument("--table", action="store_true", help="print the rows of the table in docs/consensus.md")
    parser.add_argument("names", nargs="*", help="parts of the names of protections; all if none is given")
    options = parser.parse_args()
    if options.table:
        print("\n".join(protection.row for protection in PROTECTIONS))
        return 0
    missed = 0
    for protection in PROTECTIONS:
        if options.check and protection.seeds is None:
            continue
        if options.names and not any(name in protection.name for name in options.names):
            continue
        began = time.perf_counter()
        seeds = (protection.seeds if options.check else None) or options.seeds
        found = first_failure(protection, range(seeds))
        shown = f"not within {seeds}" if found is None else f"seed {found[0]}: {found[1][:150]}"
        took = time.perf_counter() - began
        print(f"{protection.item:12} {protection.name:28} {took:4.0f} s  {shown!r}", flush=True)
        missed += found is None
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
