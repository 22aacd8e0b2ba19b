"""``python -m tests.django_suite.third_party``: suites of packages that use the ORM, on our engine and on sqlite3.

Each is run from its source distribution through the overlay: the engine of ``DATABASES`` is the only difference, and
the results of the two runs are compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from .environment import Environment, Missing, find_interpreter, own_dependencies
from .suite import ONE_NODE, SQLITE3, run_tests
from .verdict import Baseline, compare, describe


@dataclass(frozen=True, slots=True)
class Package:
    """A package at a version, what its tests need, and the command that runs them."""

    project: str
    archive: str
    version: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]


PACKAGES = {
    "djangorestframework": Package(
        "djangorestframework",
        "djangorestframework",
        "3.18.3",
        (
            "pytest",
            "pytest-django",
            "dj-database-url",
            "markdown",
            "inflection",
            "pyyaml",
            "uritemplate",
            "requests",
            "django-guardian<3.6",
        ),
        ("-m", "pytest", "-q", "-p", "raftsuite.pytest_plugin", "-p", "no:cacheprovider", "tests"),
    ),
    "django-filter": Package(
        "django-filter",
        "django_filter",
        "26.2",
        ("djangorestframework==3.18.3", "django-crispy-forms", "pytz"),
        ("-m", "django", "test", "--settings=raftsuite.django_filter_settings", "--noinput", "-v0", "tests"),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.django_suite.third_party", description=__doc__)
    parser.add_argument("packages", nargs="*", default=list(PACKAGES), metavar="package", help=", ".join(PACKAGES))
    parser.add_argument("--django", default="5.2", help="default: %(default)s")
    parser.add_argument("--python", help="default: the oldest that fits and that is there")
    options = parser.parse_args()
    try:
        passed = [_run(PACKAGES[name], options.django, options.python) for name in options.packages]
        return 0 if all(passed) else 1
    except Missing as error:
        sys.exit(str(error))


def _run(package: Package, django: str, python: str | None) -> bool:
    environment = Environment(find_interpreter(python, django), f"third-party-django{django}")
    environment.make()
    source = environment.sdist(package.project, package.version, name=package.archive)
    everything = [requirement for each in PACKAGES.values() for requirement in each.requirements]
    environment.install([f"Django=={django}.*", *own_dependencies(), *sorted(set(everything)), "tblib"])
    environment.install_package()
    print(f"{package.project} {package.version}", flush=True)
    # The tests import their own package from beside them, not one that is installed.
    theirs = run_tests(environment, package.command, source, SQLITE3, path=source)
    ours = run_tests(environment, package.command, source, ONE_NODE, path=source)
    baseline = Baseline.of(theirs)
    verdict = compare(ours, baseline)
    print(describe(ours, baseline, verdict), flush=True)
    return verdict.passed


if __name__ == "__main__":
    sys.exit(main())
