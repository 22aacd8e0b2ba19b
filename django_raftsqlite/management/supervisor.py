"""Keeps the processes of a local cluster running, and restarts them one after the other."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .child import Child, Program, describe_exit

STOP_GRACE = 10.0
RETURN_GRACE = 60.0
SETTLED = 10.0
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of itself. ``asked`` is time.monotonic() before it was asked.

    ``leader`` is the *name* of the leader's program, or None; ``serving`` is whether its pages are served.
    """

    asked: float
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    serving: bool


class Supervisor:
    """Runs one program per node until :meth:`stop`.

    A program that ends is started again after a delay that doubles (0.5 s up to 8 s) while it ends early. A new
    leader is announced. :meth:`roll` restarts one program after the other, the leader's last, each only when the
    one before is back, so that a group of three never has two nodes away on account of this.
    The programs in ``afterwards`` are run once, one after the other, as soon as there is a leader; when one fails,
    those after it are not run.

    :meth:`run` owns everything, in one thread, which must be the main thread or outlive the children.
    :meth:`stop` and :meth:`roll` may be called by signal handlers and other threads. ``probe`` is called by a
    thread of its own.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        probe: Callable[[str], Report | None],
        show: Callable[[str, str], None],
        announce: Callable[[str], None],
        restart: bool = True,
        afterwards: Sequence[Program] = (),
        poll: float = 0.2,
    ) -> None:
        self._programs = {program.name: program for program in programs}
        self._show, self._announce = show, announce
        self._restart = restart
        self._afterwards = deque(afterwards)
        self._watch = _Watch(list(self._programs), probe, poll)
        self._poll = poll
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, Child] = {}
        self._delay: dict[str, float] = {}
        self._due: dict[str, float] = {}
        self._roll = _Roll()
        self._leader: tuple[str, int] | None = None
        self._stops = 0
        self._roll_asked = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)

    def stop(self) -> None:
        """Stop every child and end :meth:`run`; a second call does not wait for them any longer."""
        self._stops += 1
        self._wake()

    def roll(self) -> None:
        """Restart the children one after the other; during a roll: once more afterwards."""
        self._roll_asked = True
        self._wake()

    def run(self) -> int:
        """Returns 0 after :meth:`stop`, 1 when every child has ended and none is restarted."""
        self._watch.start()
        try:
            for program in self._programs.values():
                self._start(program)
            while not self._stops:
                if not self._children and not self._due:
                    self._announce("no node is left")
                    return 1
                self._step()
            return 0
        finally:
            self._stop_all()
            self._watch.stop()
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _wake(self) -> None:
        # Full or closed: it is awake, or over.
        with suppress(OSError):
            os.write(self._wake_write, b"\0")

    def _step(self) -> None:
        self._read_output(self._poll)
        for name, child in list(self._children.items()):
            status = child.ended()
            if status is not None:
                self._bury(name, status)
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            self._start(self._programs[name])
        self._announce_leader()
        self._advance_roll(now)

    def _start(self, program: Program) -> None:
        self._due.pop(program.name, None)
        child = Child(program)
        self._children[program.name] = child
        self._selector.register(child.output, selectors.EVENT_READ, child)

    def _read_output(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with suppress(BlockingIOError):
                    os.read(self._wake_read, 1024)
            else:
                self._pass_on(key.data)

    def _pass_on(self, child: Child) -> None:
        lines, at_end = child.read_lines()
        for line in lines:
            self._show(child.program.name, line)
        if at_end:
            with suppress(KeyError):
                self._selector.unregister(child.output)

    def _bury(self, name: str, status: int) -> None:
        child = self._children.pop(name)
        self._pass_on(child)
        with suppress(KeyError):
            self._selector.unregister(child.output)
        child.close()
        if name not in self._programs:
            self._go_on_after(name, status)
            return
        if child.stopping:
            return
        said = f"{name} (pid {child.pid}) {describe_exit(status)}"
        if not self._restart:
            self._announce(f"{said}; it is not restarted")
            return
        lived = time.monotonic() - child.started
        delay = FIRST_DELAY if lived > SETTLED else self._delay.get(name, FIRST_DELAY)
        self._delay[name] = min(delay * 2, LONGEST_DELAY)
        self._due[name] = time.monotonic() + delay
        self._announce(f"{said}; it is restarted in {delay:g} s")

    def _announce_leader(self) -> None:
        known = [(report.term, report.leader) for report in self._watch.reports().values() if report.leader]
        if not known:
            return
        term, leader = max(known)
        assert leader is not None
        first = self._leader is None
        if self._leader is not None and term <= self._leader[1]:
            return
        self._leader = (leader, term)
        self._announce(f"{leader} is the leader (term {term})")
        if first:
            self._start_next_afterwards()

    def _start_next_afterwards(self) -> None:
        if self._afterwards and not self._stops:
            self._start(self._afterwards.popleft())

    def _go_on_after(self, name: str, status: int) -> None:
        if status == 0:
            self._start_next_afterwards()
        elif not self._stops:
            self._afterwards.clear()
            self._announce(f"{name} {describe_exit(status)}")

    def _advance_roll(self, now: float) -> None:
        roll = self._roll
        if not roll.active:
            if self._roll_asked:
                self._roll_asked = False
                roll.begin(list(self._programs))
            else:
                return
        if roll.current is None:
            leader = self._leader[0] if self._leader else None
            name = roll.choose(leader)
            if name is None:
                self._announce("every node runs the new code")
                return
            self._announce(f"restarting {name}")
            roll.target = max((report.commit_index for report in self._watch.reports().values()), default=0)
            roll.deadline = now + STOP_GRACE
            if (child := self._children.get(name)) is not None:
                child.interrupt()
            roll.restarted = False
        elif not roll.restarted:
            child = self._children.get(roll.current)
            if child is None:
                self._delay.pop(roll.current, None)
                self._start(self._programs[roll.current])
                roll.restarted, roll.deadline = True, now + RETURN_GRACE
            elif now > roll.deadline:
                child.kill()
        else:
            self._await_return(roll.current, now)

    def _await_return(self, name: str, now: float) -> None:
        child = self._children.get(name)
        report = self._watch.reports().get(name)
        if child is None or now > self._roll.deadline:
            self._roll.abandon()
            self._announce(
                f"{name} did not come back: the nodes not restarted yet go on with the old code; "
                "mend it and save again"
            )
        elif (
            report is not None
            and report.asked > child.started
            and report.serving
            and report.leader is not None
            and report.applied_index >= self._roll.target
        ):
            self._roll.current = None

    def _stop_all(self) -> None:
        for child in self._children.values():
            child.interrupt()
        deadline = time.monotonic() + STOP_GRACE
        while self._children:
            if self._stops > 1 or time.monotonic() > deadline:
                for child in self._children.values():
                    child.kill()
            self._read_output(0.05)
            for name, child in list(self._children.items()):
                status = child.ended()
                if status is not None:
                    self._bury(name, status)


class _Roll:
    """The state of a rolling restart: the names to come, and the one that is being restarted."""

    def __init__(self) -> None:
        self.remaining: list[str] = []
        self.active = False
        self.current: str | None = None
        self.restarted = False
        self.deadline = 0.0
        self.target = 0

    def begin(self, names: list[str]) -> None:
        self.remaining, self.active, self.current = names, True, None

    def choose(self, leader: str | None) -> str | None:
        """The next one, the leader only when nobody else is left; None at the end of the roll."""
        if not self.remaining:
            self.abandon()
            return None
        self.current = next((name for name in self.remaining if name != leader), self.remaining[0])
        self.remaining.remove(self.current)
        return self.current

    def abandon(self) -> None:
        self.remaining, self.active, self.current = [], False, None


class _Watch:
    """A thread that asks every node how it is; the newest answers, for the supervisor's thread."""

    def __init__(self, names: Sequence[str], probe: Callable[[str], Report | None], poll: float) -> None:
        self._names, self._probe, self._poll = names, probe, poll
        self._reports: dict[str, Report] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def reports(self) -> dict[str, Report]:
        with self._lock:
            return dict(self._reports)

    def _run(self) -> None:
        while not self._over.wait(self._poll):
            for name in self._names:
                report = self._probe(name)
                with self._lock:
                    if report is None:
                        self._reports.pop(name, None)
                    else:
                        self._reports[name] = report
