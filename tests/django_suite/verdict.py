"""What a run on our engine shows that the built-in SQLite backend does not."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "baseline"

Report = dict[str, Any]

# Reasons that tests of Django's give themselves, and which say what this backend is, not what it lacks.
OWN_SKIPS = frozenset(
    {
        # Tests of the error that an older SQLite gives: APSW carries a newer one than a standard library may have.
        "Database has feature(s) supports_aggregate_order_by_clause",
        # Tests of a lock around a connection that threads share; here each thread has its own, to a file.
        "Only connections to in-memory SQLite databases are passed to the server thread.",
    }
)


@dataclass(frozen=True, slots=True)
class Baseline:
    """A whole run on ``django.db.backends.sqlite3``: the names of what failed (errors too), was skipped, or was
    expected to fail. ``about`` says what ran where."""

    about: dict[str, Any]
    failing: frozenset[str]
    skipped: frozenset[str]
    expected: frozenset[str]

    @classmethod
    def of(cls, report: Report) -> Baseline:
        about = {key: report[key] for key in ("django", "python", "sqlite", "tests", "seconds")}
        return cls(
            about,
            frozenset(report["failures"]) | frozenset(report["errors"]),
            frozenset(report["skipped"]),
            frozenset(report["expected_failures"]),
        )

    @classmethod
    def read(cls, name: str) -> Baseline:
        """The committed one. Raises FileNotFoundError."""
        data = json.loads((FOLDER / f"{name}.json").read_text())
        return cls(data["about"], *(_flat(data[key]) for key in ("failing", "skipped", "expected")))

    def write(self, name: str) -> Path:
        path = FOLDER / f"{name}.json"
        data = {
            "about": self.about,
            "failing": _nested(self.failing),
            "skipped": _nested(self.skipped),
            "expected": _nested(self.expected),
        }
        FOLDER.mkdir(exist_ok=True)
        path.write_text(json.dumps(data, indent=0) + "\n")
        return path


def tested_version(django: str) -> str:
    """The patch release that the baseline of a series was made with; what is not a series with a baseline stays."""
    try:
        return str(Baseline.read(django).about["django"])
    except FileNotFoundError:
        return django


def _nested(names: frozenset[str]) -> dict[str, str]:
    """Names by their class, to keep the files small; the tests of a class stand in one line."""
    nested: dict[str, list[str]] = {}
    for name in sorted(names):
        plain, space, parameters = name.partition(" ")
        case, _, test = plain.rpartition(".")
        nested.setdefault(case, []).append(test + space + parameters)
    return {case: "\t".join(tests) for case, tests in nested.items()}


def _flat(nested: dict[str, str]) -> frozenset[str]:
    return frozenset(
        f"{case}.{test}" if case else test for case, tests in nested.items() for test in tests.split("\t")
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The differences, by what kind they are; ``listed`` are the skips that have a reason of our own: one of
    ``features.py``, or one of :data:`OWN_SKIPS`."""

    differences: dict[str, list[str]] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not any(self.differences.values())


def compare(report: Report, baseline: Baseline) -> Verdict:
    """Judge a run of all tests, or of some."""
    skipped: dict[str, str] = report["skipped"]
    own = OWN_SKIPS | set(report["own_reasons"])
    listed: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        if reason in own:
            listed.setdefault(reason, []).append(name)
    allowed = baseline.failing
    return Verdict(
        {
            "fails": [name for name in report["failures"] if name not in allowed],
            "ends with an error": [name for name in report["errors"] if name not in allowed],
            "is skipped": [
                f"{name} ({reason})"
                for name, reason in sorted(skipped.items())
                if name not in baseline.skipped and reason not in own
            ],
            "is expected to fail": [name for name in report["expected_failures"] if name not in baseline.expected],
            "passes, which is unexpected": list(report["unexpected_successes"]),
        },
        listed,
    )


def describe(report: Report, baseline: Baseline, verdict: Verdict) -> str:
    """The run and its verdict, for people."""
    lines = [
        f"{report['engine']}: Django {report['django']}, Python {report['python']}, SQLite {report['sqlite']}: "
        f"{report['tests']} tests in {report['seconds']:g} s; {len(report['failures'])} failures, "
        f"{len(report['errors'])} errors, {len(report['skipped'])} skipped, "
        f"{len(report['expected_failures'])} expected failures",
        f"compared with django.db.backends.sqlite3 ({len(baseline.failing)} failing, {len(baseline.skipped)} skipped "
        f"of {baseline.about['tests']})",
    ]
    if report["compared"]:
        lines.append(f"the nodes' files were compared {report['compared']} times")
    lines += [f"  listed: {reason}: {', '.join(names)}" for reason, names in sorted(verdict.listed.items())]
    for kind, names in verdict.differences.items():
        lines += [f"  {kind} here only: {name}" for name in names]
    lines.append("PASS: no difference" if verdict.passed else "FAIL: the differences above")
    return "\n".join(lines)
