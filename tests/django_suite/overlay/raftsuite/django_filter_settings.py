"""Settings for django-filter's tests: its own, with the engine of the run."""

from __future__ import annotations

from tests.settings import *  # type: ignore[import-untyped]  # noqa: F403 - the tests folder of django-filter

from raftsuite.databases import databases

DATABASES = databases("default")
TEST_RUNNER = "raftsuite.runner.Runner"
