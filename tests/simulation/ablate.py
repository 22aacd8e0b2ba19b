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
    parser.add_argument("names", nargs="*", help="parts of the names of protections; all if none is given")
    options = parser.parse_args()
    for protection in PROTECTIONS:
        if options.names and not any(name in protection.name for name in options.names):
            continue
        began = time.perf_counter()
        found = first_failure(protection, range(options.seeds))
        shown = f"not within {options.seeds}" if found is None else f"seed {found[0]}: {found[1][:150]}"
        print(f"{protection.item:12} {protection.name:28} {time.perf_counter() - began:4.0f} s  {shown!r}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
