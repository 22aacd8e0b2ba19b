"""Processes of the test project that start in no time: forked off from one that has imported everything.

A runbook is a hundred short commands, each of which would import Django and this package first. This module, run as
a program, has done that, for the package that its ``PYTHONPATH`` leads to. A line of its standard input is JSON:
``{"id": 1, "words": ["manage", "raft", "status"], "environment": {}, "folder": "/", "output": "/dev/null"}``. It
forks a process that runs ``manage.py``, or the module that the first word names. It answers ``{"id": 1, "pid": 2}``,
and ``{"id": 1, "status": 0}`` when that has ended; ``{"id": 1, "signal": 9}`` sends it a signal. All end with its
standard input.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

MANAGE = Path(__file__).parents[2] / "testproject" / "manage.py"
IMPORTED = [
    "django.core.management.commands.check",
    "django.core.management.commands.migrate",
    "django.db.models",
    "django_raftsqlite.base",
    "django_raftsqlite.management.commands.raft",
    "django_raftsqlite.node.host",
]


class Started:
    """A process; as much of Popen as is needed."""

    def __init__(self, status: Future[int], send: Callable[[int], None]) -> None:
        self._status = status
        self.send_signal = send  # without effect when it has ended

    def wait(self, timeout: float) -> int:
        """The exit status, negative for a signal. Raises TimeoutError."""
        return self._status.result(timeout)


class Starter:
    """The test's end. ``path`` are the folders that Python code comes from. Any thread may start."""

    def __init__(self, path: Sequence[Path], settings: str, folder: Path) -> None:
        self.path = os.pathsep.join(map(str, path))
        self.settings = settings
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.process.starter"],
            cwd=folder,  # not where another version of the package is
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": self.path},
            start_new_session=True,
        )
        self._mutex = threading.Lock()
        self._number = 0
        self._pids: dict[int, Future[int]] = {}
        self._statuses: dict[int, Future[int]] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def start(self, words: Sequence[str], environment: Mapping[str, str], folder: Path, output: Path) -> Started:
        """Start a process; what it prints is added to ``output``."""
        with self._mutex:
            self._number += 1
            number = self._number
            pid, status = self._pids[number], self._statuses[number] = Future(), Future()
            environment = {**environment, "PYTHONPATH": self.path, "DJANGO_SETTINGS_MODULE": self.settings}
            task = {"id": number, "words": list(words), "environment": environment}
            self._send({**task, "folder": str(folder), "output": str(output)})
        pid.result(60)
        return Started(status, partial(self._signal, number))

    def _signal(self, number: int, signal: int) -> None:
        with self._mutex:
            if number in self._statuses:
                self._send({"id": number, "signal": signal})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Everything it started ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join()
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._mutex:
                if "pid" in told:
                    self._pids.pop(told["id"]).set_result(told["pid"])
                else:
                    self._statuses.pop(told["id"]).set_result(told["status"])
        with self._mutex:
            for future in (*self._pids.values(), *self._statuses.values()):
                future.set_exception(AssertionError("the starter has ended"))


def main() -> None:
    """Start what standard input says until it ends."""
    for name in IMPORTED:
        import_module(name)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    numbers: dict[int, int] = {}  # by process id, of those that were not waited for
    left = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        while numbers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _tell({"id": numbers.pop(ended[0]), "status": os.waitstatus_to_exitcode(ended[1])})
        if 0 not in ready:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            break
        *lines, left = (left + read).split(b"\n")
        for line in lines:
            task = json.loads(line)
            if "signal" in task:
                for pid in [pid for pid, number in numbers.items() if number == task["id"]]:
                    os.kill(pid, task["signal"])
                continue
            pid = os.fork()
            if not pid:
                os.close(wake)
                os.close(waker)
                _run(**task)
            numbers[pid] = task["id"]
            _tell({"id": task["id"], "pid": pid})
    for pid in numbers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _tell(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _run(id: int, words: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    """The process itself: as a new one would be, and at its end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        status = _execute(words)
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _execute(words: list[str]) -> int:
    import traceback

    what, *arguments = words
    try:
        if what == "manage":
            sys.argv = [str(MANAGE), *arguments]
            runpy.run_path(str(MANAGE), run_name="__main__")
        else:
            sys.argv = [what, *arguments]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
