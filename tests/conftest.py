"""What all tests need of their own process."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and all their children: here it interrupts all the same."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
