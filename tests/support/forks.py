"""Forked children whose failures are the test's."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

DEADLINE = 30.0


class Hung(AssertionError):
    """The child did not end in time."""


def fork() -> int:
    """os.fork(), as user code calls it, without the warning about threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Child:
    """``check`` running in a forked child; as a context manager, which joins it, or kills it when its block fails.

    ``ends_by_itself``: by SystemExit, so that the interpreter is torn down.
    """

    def __init__(self, check: Callable[[], Any], *, ends_by_itself: bool = False) -> None:
        receive, send = os.pipe()
        self._receive = receive
        self._open = True
        self.pid = fork()
        if self.pid:
            os.close(send)
            return
        try:
            os.close(receive)
            check()
        except SystemExit:  # of a child of this one
            raise
        except BaseException:
            os.write(send, traceback.format_exc().encode())
            os._exit(1)
        sys.stdout.flush()
        os.close(send)
        if ends_by_itself:
            sys.exit(0)
        os._exit(0)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.join()
        elif self._open:
            os.kill(self.pid, signal.SIGKILL)
            self._finish()

    def join(self, timeout: float = DEADLINE) -> None:
        """Return when it ended well. Raises AssertionError with its traceback, or Hung."""
        deadline = time.monotonic() + timeout
        failure = b""
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self._receive], [], [], left)[0]:
                    raise Hung(f"child {self.pid} did not end within {timeout:g} s")
                part = os.read(self._receive, 65536)
                if not part:
                    break
                failure += part
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            status = self._finish()
        assert not failure, failure.decode()
        assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"

    def _finish(self) -> int:
        self._open = False
        os.close(self._receive)
        return os.waitpid(self.pid, 0)[1]


def in_child(check: Callable[[], Any], timeout: float = DEADLINE) -> None:
    """Run ``check`` in a forked child; its failure is raised here."""
    Child(check).join(timeout)
