"""A child process whose lines can be waited for."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest


class Printing:
    """``command`` in a process of its own, with ``environment`` over this one's. ``deadline``: seconds of each wait.

    ``lines`` has what it printed so far, to standard output and error; a thread adds to it until nobody holds the
    output any more. Whoever makes one ends it by :meth:`close`. ``own_session``: signals from the terminal are not
    for it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        deadline: float,
        own_session: bool = False,
    ) -> None:
        self.lines: list[str] = []
        self._deadline = deadline
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=own_session,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(line.rstrip("\n") for line in self._process.stdout)

    def wait_for(self, pattern: str, *, since: int = 0) -> str:
        """The first line, from the line ``since`` on, in which the regular expression is found."""
        end = time.monotonic() + self._deadline
        while True:
            ended = not self._reader.is_alive()
            for line in self.lines[since:]:
                if re.search(pattern, line):
                    return line
            if ended or time.monotonic() > end:
                return pytest.fail(f"no {pattern!r} in:\n" + "\n".join(self.lines))
            time.sleep(0.01)

    def end(self, number: int) -> int:
        """Send a signal; the exit status."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended, and all who hold its output; the exit status, negative for a signal."""
        status = self._process.wait(self._deadline)
        self._reader.join(self._deadline)
        assert not self._reader.is_alive(), "somebody still holds the output: an orphan"
        return status

    def close(self) -> None:
        """Kill it if it runs. May be called again."""
        if self._process.poll() is None:
            self._process.kill()
        self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
