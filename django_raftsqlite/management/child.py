"""One child process: its output line by line, and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program: ``name`` prefixes its output, ``arguments`` follow ``python``, ``environment`` is added."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A program while it runs, in a process group of its own; it ends with this process, also after kill -9.

    Owned by one thread. ``output`` is the non-blocking end of its standard output and error.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.started = time.monotonic()
        self.stopping = False
        self._unfinished = b""
        self._process = subprocess.Popen(  # noqa: S603 - the project's own commands
            [sys.executable, str(GUARD), *program.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **program.environment},
            # Ctrl-C in the terminal reaches the parent only, which then stops its children in its own way.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout
        os.set_blocking(self.output.fileno(), False)

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._process.pid

    def ended(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def read_lines(self) -> tuple[list[str], bool]:
        """The lines that are there now, and whether the output has ended. Never blocks."""
        at_end = False
        while True:
            try:
                piece = os.read(self.output.fileno(), 65536)
            except BlockingIOError:
                break
            if not piece:
                at_end = True
                break
            self._unfinished += piece
        *lines, self._unfinished = self._unfinished.split(b"\n")
        if at_end and self._unfinished:
            lines.append(self._unfinished)
            self._unfinished = b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines], at_end

    def interrupt(self) -> None:
        """Ask it to end, as Ctrl-C does: runserver and a node then stop cleanly."""
        self.stopping = True
        if self.ended() is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it and whatever it started."""
        self.stopping = True
        if self.ended() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pipes; it must have ended."""
        self._process.wait()
        self.output.close()
        assert self._process.stdin is not None
        self._process.stdin.close()


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
