"""``python -m tests.django_suite``: run Django's own suite and compare with the built-in SQLite backend."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from .environment import SERIES, Missing
from .suite import SQLITE3, Way, run_django
from .verdict import Baseline, Report, compare, describe, tested_version


def main() -> int:
    options = _parser().parse_args()
    if options.parallel > 1 and (options.nodes > 1 or options.attached):
        sys.exit("--parallel copies test databases, which --nodes and --attached cannot: use one process")
    way = SQLITE3 if options.engine == "sqlite3" or options.baseline else Way("ours", options.nodes, options.attached)
    if not (options.baseline or options.refresh):
        options.django = tested_version(options.django)
    try:
        report = _run(options, way)
        _keep(options.report, report)
        if options.baseline:
            if options.labels:
                sys.exit("a baseline is made of the whole suite: leave --labels out")
            print(f"wrote {Baseline.of(report).write(_series(report['django']))}")
            return 0
        passed = _judge(report)
        if options.ratio:
            theirs = _run(options, SQLITE3)
            # The processor's time is the fairer one on a machine that does other things as well.
            for key, what in (("seconds", "s"), ("processor", "s of processor time")):
                here, there = report[key], theirs[key]
                print(f"{here:g} {what} here, {there:g} on sqlite3: {here / there:.2f} times")
    except Missing as error:
        sys.exit(str(error))
    return 0 if passed else 1


def _run(options: argparse.Namespace, way: Way) -> Report:
    print(f"Django {options.django}, {way}", flush=True)
    return run_django(
        options.django,
        way,
        options.labels,
        python=options.python,
        parallel=options.parallel,
        refresh=options.refresh,
    )


def _judge(report: Report) -> bool:
    series = _series(report["django"])
    try:
        baseline = Baseline.read(series)
    except FileNotFoundError as error:
        sys.exit(f"there is no baseline for Django {series} ({error.filename}): make one with --baseline")
    verdict = compare(report, baseline)
    print(describe(report, baseline, verdict))
    return verdict.passed


def _series(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _keep(path: Path | None, report: Report) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


def _python(text: str) -> str:
    if not re.fullmatch(r"3\.[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version such as 3.12")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.django_suite", description=__doc__)
    parser.add_argument(
        "--django",
        default=SERIES[-1],
        help=f"a series ({', '.join(SERIES)}), or an exact version; default: %(default)s",
    )
    parser.add_argument("--python", type=_python, help="such as 3.12; default: the oldest that fits and is there")
    parser.add_argument("--labels", type=str.split, default=[], help="test labels, separated by spaces; default: all")
    parser.add_argument("--engine", choices=["ours", "sqlite3"], default="ours")
    parser.add_argument("--nodes", type=int, choices=[1, 3], default=1, help="3: the tests run on a follower")
    parser.add_argument("--attached", action="store_true", help="the tests attach to a process that hosts the node")
    parser.add_argument("--parallel", type=int, default=1, help="processes; default: %(default)s")
    parser.add_argument("--baseline", action="store_true", help="run on sqlite3 and keep that as the baseline")
    parser.add_argument(
        "--ratio", action="store_true", help="run on both engines and print how much longer ours takes"
    )
    parser.add_argument(
        "--refresh", action="store_true", help="PyPI's newest patch release, in place of the baseline's"
    )
    parser.add_argument("--report", type=Path, help="keep the report as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
