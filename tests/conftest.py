"""What all tests need of their own process."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and all their children: here it interrupts all the same.

    How long an example takes is no property of what is tested: a busy machine stands still now and then.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")
