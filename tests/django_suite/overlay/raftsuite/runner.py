"""Django's test runner, which also writes what happened to every test that did not simply pass, as JSON."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import unittest
from pathlib import Path
from typing import Any
from unittest.suite import _ErrorHolder  # type: ignore[attr-defined]

import django
from django.db import connections
from django.db.backends.sqlite3.features import DatabaseFeatures as SQLiteDatabaseFeatures
from django.test import TestCase, TransactionTestCase
from django.test.runner import DiscoverRunner
from django.test.utils import iter_test_cases  # type: ignore[attr-defined]

from raftsuite.groups import GROUPS


class ComparingSuite(unittest.TestSuite):
    """Compares the nodes of every group after each class of tests that commits; a difference is its error."""

    compared = 0

    def _tearDownPreviousClass(self, test: Any, result: Any) -> None:
        previous = getattr(result, "_previousTestClass", None)
        super()._tearDownPreviousClass(test, result)  # type: ignore[misc]
        if previous is None or previous is test.__class__ or not _commits(previous):
            return
        for group in list(GROUPS.values()):
            try:
                group.compare()
            except Exception:
                name = f"{previous.__module__}.{previous.__qualname__}"
                result.addError(_ErrorHolder(f"nodes differ ({name})"), sys.exc_info())
            else:
                ComparingSuite.compared += 1


def _commits(case: type) -> bool:
    return issubclass(case, TransactionTestCase) and not issubclass(case, TestCase)


class Runner(DiscoverRunner):
    """Writes to the file that ``RAFTSUITE_REPORT`` names."""

    test_suite = ComparingSuite

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        total = len(list(iter_test_cases(suite)))
        # Before the tests, some of which put skips of their own there.
        own_reasons = _own_reasons()
        started, used = time.perf_counter(), time.process_time()
        result = super().run_suite(suite, **kwargs)
        seconds, processor = time.perf_counter() - started, time.process_time() - used
        connection: Any = connections["default"]
        report = {
            "engine": connection.settings_dict["ENGINE"],
            "django": django.get_version(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "sqlite": ".".join(map(str, connection.Database.sqlite_version_info)),
            "tests": total,
            "ran": result.testsRun,
            "seconds": round(seconds, 1),
            "processor": round(processor, 1),
            "failures": _names(result.failures),
            "errors": _names(result.errors),
            "skipped": {_name(test): str(reason) for test, reason in result.skipped},
            "expected_failures": _names(result.expectedFailures),
            "unexpected_successes": sorted(_name(test) for test in result.unexpectedSuccesses),
            "own_reasons": own_reasons,
            "compared": ComparingSuite.compared,
        }
        Path(os.environ["RAFTSUITE_REPORT"]).write_text(json.dumps(report, indent=1))
        return result


def _own_reasons() -> list[str]:
    """The reasons for which the engine's features skip tests, without those that Django's own SQLite backend has."""
    features: Any = connections["default"].features
    builtin: Any = SQLiteDatabaseFeatures
    theirs = builtin.django_test_skips.func(features)
    return sorted(set(features.django_test_skips) - set(theirs))


def _names(outcomes: Any) -> list[str]:
    return sorted({_name(test) for test, _ in outcomes})


def _name(test: Any) -> str:
    # A sub-test's name shows its parameters, and some of those show where they lie in memory.
    return re.sub(r" at 0x[0-9a-f]+", "", test.id())
