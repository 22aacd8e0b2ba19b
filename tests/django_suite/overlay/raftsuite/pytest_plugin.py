"""For suites that run with pytest (``-p raftsuite.pytest_plugin``): the engine of the run, and a report as JSON.

Such suites call ``settings.configure(DATABASES=...)`` in their conftest, after this module is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import LazySettings

from raftsuite.databases import databases

_configure = LazySettings.configure


def _configure_with_our_databases(self: LazySettings, *args: Any, **options: Any) -> None:
    if "DATABASES" in options:
        options["DATABASES"] = databases(*options["DATABASES"])
    _configure(self, *args, **options)


LazySettings.configure = _configure_with_our_databases  # type: ignore[method-assign]


class _Outcomes:
    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.tests: set[str] = set()
        self.failures: set[str] = set()
        self.errors: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.expected_failures: set[str] = set()
        self.unexpected_successes: set[str] = set()

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        self.tests.add(name)
        if hasattr(report, "wasxfail"):
            (self.expected_failures if report.skipped else self.unexpected_successes).add(name)
        elif report.failed:
            (self.failures if report.when == "call" else self.errors).add(name)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped[name] = reason

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.add(report.nodeid)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        from django.db import connections

        connection: Any = connections["default"]
        report = {
            "engine": connection.settings_dict["ENGINE"],
            "django": django.get_version(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "sqlite": ".".join(map(str, connection.Database.sqlite_version_info)),
            "tests": len(self.tests),
            "ran": len(self.tests),
            "seconds": round(time.perf_counter() - self.started, 1),
            "failures": sorted(self.failures),
            "errors": sorted(self.errors),
            "skipped": self.skipped,
            "expected_failures": sorted(self.expected_failures),
            "unexpected_successes": sorted(self.unexpected_successes),
            "own_reasons": [],
            "compared": 0,
        }
        Path(os.environ["RAFTSUITE_REPORT"]).write_text(json.dumps(report, indent=1))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Outcomes())
