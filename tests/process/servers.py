"""A web server that serves the test project, and clients that keep it busy and note what they were answered."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.ports import free_ports
from tests.support.processes import alive

from .cluster import ROOT, TESTPROJECT, ClusterNode, Worker, node_environment, wait_until

TIMEOUT = 15.0
"""Seconds that what a request does may wait for the group (OPTIONS["timeout"]); less than REQUEST_TIMEOUT."""

REQUEST_TIMEOUT = 20.0
"""Seconds."""

CLOSING = 0.5
"""Seconds that the kernel may take to close the connections of a process that has ended."""

OPENING = 1_000_000
"""What the source of each pair of accounts holds at first."""


class Kill(NamedTuple):
    """When a process was killed: the moments (monotonic seconds) before the signal, and when it was dead."""

    before: float
    dead: float

    def explains(self, began: float, ended: float) -> bool:
        """Whether a request of that time may have got no answer because of it."""
        return began <= self.dead + CLOSING and self.before <= ended


def kill(pid: int) -> Kill:
    """kill -9, and wait for the end."""
    before = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_until(f"process {pid} is dead", lambda: not alive(pid))
    return Kill(before, time.monotonic())


OWN_VIEWS = {"PYTHONPATH": f"{TESTPROJECT}:{ROOT}", "DJANGO_SETTINGS_MODULE": "tests.process.server_settings"}


class Server:
    """A server process with its workers, on a port of its own, as one of a node's processes.

    ``{port}`` in ``command`` is replaced. Whoever makes it calls :meth:`destroy`.
    """

    def __init__(
        self, node: ClusterNode, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        (self.port,) = free_ports(1)
        self.log = node.folder / "server.log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *(part.format(port=self.port) for part in command)],
                cwd=TESTPROJECT,
                env=node_environment(node.settings, {**OWN_VIEWS, **(environment or {})}),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until("the server answers", self._answers)
        except BaseException:
            self.destroy()
            raise

    @property
    def pid(self) -> int:
        """The process id of the server itself, whose children are the workers."""
        return self._process.pid

    def children(self) -> list[int]:
        """The process ids of the workers."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def request(self, method: str, path: str, value: Any = None) -> tuple[int, Any]:
        """Status and value of one request, on a connection of its own. Raises OSError, HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT)
        try:
            body = None if value is None else json.dumps(value)
            connection.request(method, path, body, {"Content-Type": "application/json", "Connection": "close"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text.decode(errors="replace")

    def stop(self, timeout: float = 60.0) -> int:
        """SIGTERM; its exit status.

        gunicorn waits half a minute for a worker that began too late to hear of it.
        """
        self._process.terminate()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.show_stacks()
            raise AssertionError("the server did not stop; its log has the stacks") from None

    def show_stacks(self) -> None:
        """Have all threads' stacks written to the log."""
        for pid in (self.pid, *self.children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGRTMIN)
        time.sleep(1.0)

    def destroy(self) -> None:
        """End it and its workers, whatever state they are in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-80:])

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"the server ended:\n{self.tail()}"
        try:
            return self.request("GET", "/api/balances/")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


@dataclass
class Answers:
    """What one client was told. ``broken`` has, for each request without an answer, when it began and ended."""

    created: list[str] = field(default_factory=list)
    perhaps_created: list[str] = field(default_factory=list)
    moved: int = 0
    perhaps_moved: int = 0
    reads: int = 0
    broken: list[tuple[float, float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def prepare(node: ClusterNode, clients: int) -> list[tuple[int, int]]:
    """The tables, and two accounts for each client, as (source, target), by the node's own process."""
    node.call("migrate", wait=60)
    for number in range(clients):
        for name, balance in ((f"from {number}", OPENING), (f"to {number}", 0)):
            query = "insert into ledger_account (name, balance) values (%s, %s)"
            node.call("sql", query=query, parameters=[name, balance])
    rows = dict(node.call("sql", query="select name, id from ledger_account"))
    return [(rows[f"from {number}"], rows[f"to {number}"]) for number in range(clients)]


class Clients:
    """Threads that send requests until told to stop: each writes events of its own, and moves money between two
    accounts of its own, so that what was done twice, or not at all, shows in a balance."""

    def __init__(self, server: Server, pairs: Sequence[tuple[int, int]], *, api: str = "/api/") -> None:
        self._api = api
        self.answers = [Answers() for _ in pairs]
        self.pairs = list(pairs)
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(len(pairs))]
        for thread in self._threads:
            thread.start()

    def done(self) -> int:
        """Requests that were answered well so far."""
        return sum(len(a.created) + a.moved + a.reads for a in self.answers)

    def stop(self) -> None:
        """Return when all threads have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def broken(self) -> int:
        """Requests that got no answer."""
        return sum(len(answers.broken) for answers in self.answers)

    def check(self, worker: Worker, kills: Sequence[Kill] = (), *, stopped: float = math.inf) -> None:
        """What was acknowledged is there once, the rest at most once; what failed, failed with its worker.

        ``worker`` reads what is there now; ``stopped`` is the moment before the server itself was told to end: from
        then on, a request may get no answer.
        """
        texts = worker.call("texts", wait=60)
        balances = dict(worker.call("sql", query="select id, balance from ledger_account"))
        problems = [text for answers in self.answers for text in answers.wrong]
        found: dict[str, int] = {}
        for text in texts:
            found[text] = found.get(text, 0) + 1
        for answers, (source, target) in zip(self.answers, self.pairs, strict=True):
            problems += [f"{found.get(t, 0)} times: {t}" for t in answers.created if found.get(t, 0) != 1]
            problems += [f"{found[t]} times: {t}" for t in answers.perhaps_created if found.get(t, 0) > 1]
            least, most = answers.moved, answers.moved + answers.perhaps_moved
            if not least <= balances[target] <= most or balances[source] + balances[target] != OPENING:
                problems.append(f"account {target} got {balances[target]}, not {least} to {most}")
            for began, ended, error in answers.broken:
                if ended < stopped and not any(kill.explains(began, ended) for kill in kills):
                    problems.append(f"failed while no worker was killed: {error}")
        assert not problems, "\n".join(problems[:20])

    def _run(self, number: int) -> None:
        answers, (source, target) = self.answers[number], self.pairs[number]
        count = 0
        while not self._stop.is_set():
            count += 1
            text = f"client {number} {count}"
            began = time.monotonic()
            try:
                if count % 4 == 0:
                    status, value = self._server.request("GET", f"{self._api}balances/")
                    answers.reads += self._well(answers, status, 200, value)
                elif count % 2:
                    status, value = self._server.request("POST", f"{self._api}events/", {"text": text})
                    if self._well(answers, status, 201, value):
                        answers.created.append(text)
                else:
                    transfer = {"source": source, "target": target, "amount": 1}
                    status, value = self._server.request("POST", f"{self._api}transfers/", transfer)
                    answers.moved += self._well(answers, status, 200, value)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, TimeoutError):
                    answers.wrong.append(f"no answer within {REQUEST_TIMEOUT:g} s; the log has the stacks")
                    self._server.show_stacks()
                answers.broken.append((began, time.monotonic(), f"{text}: {error!r}"))
                if count % 2:
                    answers.perhaps_created.append(text)
                elif count % 4:
                    answers.perhaps_moved += 1

    @staticmethod
    def _well(answers: Answers, status: int, expected: int, value: Any) -> bool:
        if status != expected:
            answers.wrong.append(f"{status}: {value}"[:500])
        return status == expected
