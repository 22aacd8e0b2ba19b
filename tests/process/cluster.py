"""Real node processes of the test project on loopback ports, to be stopped, killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.registry import attach_node
from tests.support.ports import free_ports

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
TESTPROJECT = ROOT / "testproject"
SECRET = "a secret for the tests, long enough"
START_TIMEOUT = 30.0
LOG_TAIL = 60


class ProcessEnded(Exception):
    """The process ended before it answered."""


class RemoteError(Exception):
    """A verb raised in the process: ``kind`` is the exception's class name, ``reason`` Unavailable's."""

    def __init__(self, kind: str, text: str, reason: str | None) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text
        self.reason = reason


def wait_until(what: str, probe: Callable[[], T | None], timeout: float = 30.0, *, every: float = 0.02) -> T:
    """The first truthy value of ``probe()``; AssertionError with the last one when the time is up. ``every``: seconds
    between two looks."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}; the last look gave {value!r}"
        time.sleep(every)


def until_accepted(what: str, attempt: Callable[[], T], *refusals: str, timeout: float = 30.0) -> T:
    """The value of what may be tried again and again, once it is not refused with an error of these kinds."""

    def accepted() -> list[T] | None:
        try:
            return [attempt()]
        except RemoteError as error:
            assert error.kind in refusals, error
            return None

    return wait_until(what, accepted, timeout)[0]


class Worker:
    """A running ``tests.process.worker``, or a ``module`` like it; one object per process, which ends with it.

    ``TEST_LAUNCHER`` in its environment is a command that starts it, and becomes it. A thread of the test reads the
    answers; any thread may call.
    """

    module = "tests.process.worker"

    def __init__(self, settings: Mapping[str, Any], log: Path, environment: Mapping[str, str]) -> None:
        launcher = shlex.split(environment.get("TEST_LAUNCHER", ""))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*launcher, sys.executable, "-X", "faulthandler", "-m", self.module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=node_environment(settings, environment),
                start_new_session=True,
            )
        self._mutex = threading.Lock()
        self._number = 0
        self._open: dict[int, Future[Any]] = {0: Future()}
        self._ended = False
        self._greeting = self._open[0]
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Return when it takes commands."""
        self._greeting.result(START_TIMEOUT)

    def send(self, verb: str, session: str = "main", **args: Any) -> Future[Any]:
        """Have a verb run in a session; the future raises RemoteError or ProcessEnded."""
        future: Future[Any] = Future()
        with self._mutex:
            if self._ended:
                future.set_exception(ProcessEnded(f"process {self.pid} has ended"))
                return future
            self._number += 1
            self._open[self._number] = future
            line = json.dumps({"id": self._number, "session": session, "verb": verb, "args": args}) + "\n"
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
        return future

    def call(self, verb: str, session: str = "main", wait: float = 30.0, **args: Any) -> Any:
        """Run a verb and return its value. Raises RemoteError, ProcessEnded, TimeoutError."""
        return self.send(verb, session, **args).result(wait)

    def signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP, and wait until all threads stand still: but for the first that is told they run on for a while."""
        self.signal(signal.SIGSTOP)
        changed = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        wait_until(f"process {self.pid} stands still", lambda: os.waitid(os.P_PID, self.pid, changed))

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        self._finish(10.0)

    def stop(self, timeout: float = 30.0) -> int:
        """End it cleanly; the exit status."""
        assert self._process.stdin is not None
        with self._mutex, contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            return self._finish(timeout)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGUSR1)  # its threads' stacks go to the log
            time.sleep(0.5)
            self.kill()
            raise AssertionError(
                f"process {self.pid} did not stop within {timeout:g} s; its log has the stacks"
            ) from None

    def _finish(self, timeout: float) -> int:
        status = self._process.wait(timeout)
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return status

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # killed in the middle of a line
                continue
            with self._mutex:
                future = self._open.pop(message["id"])
            if "ok" in message:
                future.set_result(message["ok"])
            else:
                future.set_exception(RemoteError(*message["error"]))
        with self._mutex:
            self._ended = True
            left, self._open = self._open, {}
        for future in left.values():
            future.set_exception(ProcessEnded(f"process {self.pid} ended before it answered"))


def node_environment(settings: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of the test project that runs as the node with these settings."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{TESTPROJECT}",
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "TESTPROJECT_DEBUG": "0",
        "TESTPROJECT_DATA": str(Path(settings["NAME"]).parent),
        "RAFTSQLITE_DEFAULT": json.dumps(settings),
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


class ClusterNode:
    """One member: its files outlive its processes. ``worker`` is the process that runs now, or None."""

    worker_class = Worker

    def __init__(
        self, index: int, folder: Path, address: str, peers: Sequence[str], options: Mapping[str, Any]
    ) -> None:
        self.index = index
        self.folder = folder
        self.address = address
        self.name = folder / "db.sqlite3"
        self.log = folder / "node.log"
        self.settings: dict[str, Any] = {
            "NAME": str(self.name),
            "OPTIONS": {"node": address, "peers": list(peers), "secret": SECRET, **options},
        }
        self.environment: dict[str, str] = {}
        self.worker: Worker | None = None
        self._extra: list[Worker] = []
        self._config = NodeConfig(self.name, address, tuple(peers), timeout=2.0)
        folder.mkdir()

    def __repr__(self) -> str:
        return f"<node {self.index} {self.address}>"

    @property
    def running(self) -> bool:
        """Whether its main process runs."""
        return self.worker is not None and self.worker.alive

    def start(self, *, wait: bool = True) -> Worker:
        """Start its main process, which opens (and so hosts) the node at once."""
        assert not self.running
        self.worker = self.worker_class(self.settings, self.log, self.environment)
        self.worker.send("open")
        if wait:
            self.wait_open()
        return self.worker

    def wait_open(self) -> None:
        """Return when the main process has its node open."""
        assert self.worker is not None
        self.worker.wait_ready()
        self.worker.call("open", wait=START_TIMEOUT)

    def attach(self, **options: Any) -> Worker:
        """One more process on the same file; ``options`` change its OPTIONS."""
        settings = {**self.settings, "OPTIONS": {**self.settings["OPTIONS"], **options}}
        worker = self.worker_class(settings, self.folder / f"attached{len(self._extra)}.log", self.environment)
        self._extra.append(worker)
        worker.wait_ready()
        return worker

    def call(self, verb: str, session: str = "main", wait: float = 30.0, **args: Any) -> Any:
        """Run a verb in the main process."""
        assert self.worker is not None
        return self.worker.call(verb, session, wait, **args)

    def kill(self) -> None:
        """kill -9 of the main process."""
        if self.worker is not None:
            self.worker.kill()

    def stop(self) -> int:
        """End the main process cleanly; its exit status."""
        assert self.worker is not None
        return self.worker.stop()

    def destroy(self) -> None:
        """End all its processes, whatever state they are in."""
        for worker in [*self._extra, *([self.worker] if self.worker is not None else [])]:
            worker.kill()

    def status(self) -> dict[str, Any] | None:
        """What the node says of itself; None while nobody hosts it."""
        node = attach_node(self._config)
        if node is None:
            return None
        try:
            return node.status()
        except Exception:  # it is being killed
            return None
        finally:
            node.close()

    def dump(self) -> str:
        """``.dump`` of its file, by a process of its own: this one must not touch the file of a live node."""
        return inspect_file(self.name)[0]

    def tail(self) -> str:
        """The end of its log files, for a failed test's report."""
        parts = []
        for path in [self.log, *sorted(self.folder.glob("attached*.log"))]:
            if path.exists():
                lines = path.read_text(errors="replace").splitlines()
                parts.append("\n".join([f"--- {self.address} {path} ({len(lines)} lines)", *lines[-LOG_TAIL:]]))
        return "\n".join(parts)


class Cluster:
    """The members of one group under ``folder``. Whoever makes it calls :meth:`destroy`, whatever happens.

    ``hosts`` are the addresses where they listen, if not all do on 127.0.0.1.
    """

    node_class = ClusterNode

    def __init__(self, folder: Path, size: int = 3, *, hosts: Sequence[str] | None = None, **options: Any) -> None:
        self.folder = folder
        where = hosts or ["127.0.0.1"] * size
        self.peers = [f"{host}:{port}" for host, port in zip(where, free_ports(size), strict=True)]
        folder.mkdir(parents=True, exist_ok=True)
        self.nodes = [
            self.node_class(index, folder / f"node{index}", address, self.peers, options)
            for index, address in enumerate(self.peers)
        ]

    def destroy(self) -> None:
        """End all processes."""
        for node in self.nodes:
            node.destroy()

    def __getitem__(self, index: int) -> ClusterNode:
        return self.nodes[index]

    def __iter__(self) -> Iterator[ClusterNode]:
        return iter(self.nodes)

    def start(self, *, migrate: bool = True) -> None:
        """Start all members; with ``migrate``, create the tables of the workloads and wait for them everywhere."""
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_open()
        self.wait_leader()
        if migrate:
            self[0].call("migrate", wait=60)
            self.converge()

    def by_address(self, address: str) -> ClusterNode:
        """The member with that address."""
        return next(node for node in self.nodes if node.address == address)

    def leader(self) -> ClusterNode | None:
        """The member that says that it leads, in the highest term; None while there is none."""
        leading = [
            (status["term"], node) for node in self.nodes if (status := node.status()) and status["role"] == "leader"
        ]
        return max(leading, key=lambda pair: pair[0])[1] if leading else None

    def wait_leader(self, timeout: float = 20.0) -> ClusterNode:
        """The leader, once a majority of the members agrees on it."""

        def agreed() -> ClusterNode | None:
            said = [status["leader"] for node in self.nodes if (status := node.status())]
            for address in set(said) - {None}:
                node = self.by_address(address)
                if said.count(address) > len(self.nodes) // 2 and node.running:
                    return node
            return None

        return wait_until("a leader that a majority knows", agreed, timeout)

    def agreed_leader(self) -> ClusterNode | None:
        """The member that all who answer call their leader; None while they differ or know none."""
        said = {status["leader"] for node in self.nodes if (status := node.status())}
        address = said.pop() if len(said) == 1 else None
        return None if address is None else self.by_address(address)

    def another_leads(self, former: ClusterNode) -> bool:
        """All who answer agree on a leader other than ``former``."""
        return self.agreed_leader() not in (None, former)

    def followers(self) -> list[ClusterNode]:
        """The others, once there is a leader."""
        leader = self.wait_leader()
        return [node for node in self.nodes if node is not leader]

    def converge(self, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until all members have applied the same: index, version, digest; and return these."""
        return converge(self.nodes, timeout)

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(node.tail() for node in self.nodes)


def converge(nodes: Sequence[ClusterNode], timeout: float = 30.0) -> dict[str, Any]:
    """See :meth:`Cluster.converge`, for some of the members."""
    seen: list[Any] = []

    def equal() -> dict[str, Any] | None:
        seen[:] = []
        for node in nodes:
            status = node.status()
            seen.append(
                status
                and {key: status[key] for key in ("commit_index", "applied_index", "version", "digest", "lineage")}
            )
        first = seen[0]
        if first is None or first["commit_index"] != first["applied_index"]:
            return None
        return first if all(other == first for other in seen) else None

    try:
        found = wait_until("all members have the same state", equal, timeout)
    except AssertionError as error:
        statuses = "\n".join(f"{node}: {status}" for node, status in zip(nodes, seen, strict=True))
        raise AssertionError(f"{error}\n{statuses}") from None
    assert found is not None
    return found


_INSPECT = """
import io, sys, apsw, apsw.shell
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READONLY)
out = io.StringIO()
print(connection.execute("pragma integrity_check").get, file=sys.stderr)
apsw.shell.Shell(db=connection, stdout=out).process_command(".dump")
sys.stdout.write("\\n".join(l for l in out.getvalue().splitlines() if not l.startswith("--")))
"""


def inspect_file(path: Path) -> tuple[str, str]:
    """``.dump`` (without its comments, which tell path and time) and ``integrity_check`` of a database file.

    Done by a process of its own, read-only: closing any descriptor of the file here would drop SQLite's locks.
    """
    done = subprocess.run(
        [sys.executable, "-c", _INSPECT, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.strip()


def check_files(nodes: Sequence[ClusterNode]) -> None:
    """All members' files are sound and hold the same, down to the last row of every table."""
    pictures = {node.address: inspect_file(node.name) for node in nodes}
    for address, (_, sound) in pictures.items():
        assert sound == "ok", f"{address}: {sound}"
    (first, (reference, _)), *others = pictures.items()
    for address, (dump, _) in others:
        if dump != reference:
            mine, theirs = set(reference.splitlines()), set(dump.splitlines())
            differences = [f"  only {first}: {line[:300]}" for line in sorted(mine - theirs)[:10]]
            differences += [f"  only {address}: {line[:300]}" for line in sorted(theirs - mine)[:10]]
            raise AssertionError("\n".join([f"the files of {first} and {address} differ:", *differences]))
