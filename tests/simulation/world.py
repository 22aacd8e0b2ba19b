"""Virtual time: a heap of events and tasks (greenlets) that run until they wait; the same seed, the same run."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any

import greenlet

MOST_EVENTS = 3_000_000
"""In one run; more is a task that turns in circles without letting time pass."""


class Died(greenlet.GreenletExit):
    """The process that executes this is no more. Not an Exception: nothing in the product catches it."""


class Violation(AssertionError):
    """The simulation has found what must not be."""


class Process:
    """One operating-system process: clocks of its own, and tasks that die with it.

    ``rate`` and ``offset`` make its monotonic clock another one than that of any other process; ``wall`` (seconds) is
    how far its wall clock is off, and may be changed at any time. Until ``stalled_until`` it is stopped (SIGSTOP).
    After ``calls_left`` system calls it dies in the midst of the next, if that is not None.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.tasks: dict[Task, None] = {}
        self.stalled_until = 0.0
        self.calls_left: int | None = None
        self.offset = world.random.uniform(100.0, 100_000.0)
        self.rate = world.random.uniform(0.97, 1.03)
        self.wall = 0.0
        self.loop: Any = None
        self.connections: list[Any] = []
        self.descriptors: dict[int, None] = {}
        self.sessions: dict[Any, None] = {}
        self.after: Callable[[], None] | None = None
        self.on_death: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        """Seconds."""
        return self.offset + self.world.now * self.rate

    def system_call(self) -> None:
        """A moment at which the process may be killed. Raises Died."""
        if not self.alive:
            raise Died
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                self.alive = False
                self.world.note(f"{self.name} is killed within a system call")
                self.world.soon(self.on_death)
                raise Died

    def kill(self) -> None:
        """End all tasks, wherever they wait. Not for one of its own tasks."""
        self.alive = False
        for task in list(self.tasks):
            task.kill()


class Task:
    """A thread of a process: runs alone, until it waits."""

    def __init__(self, process: Process, name: str, target: Callable[[], Any]) -> None:
        self.process = process
        self.name = name
        self.ticket = 0
        self.done = False
        self.joiners: list[tuple[Task, int]] = []
        self._target = target
        self.greenlet = greenlet.greenlet(self._main, process.world.hub)
        process.tasks[self] = None

    def _main(self, _value: object = None) -> None:
        try:
            self._target()
        finally:
            self.done = True
            self.process.tasks.pop(self, None)
            for task, ticket in self.joiners:
                task.process.world.wake(task, ticket)

    def kill(self) -> None:
        world, self.ticket = self.process.world, self.ticket + 1
        if self.done:
            return
        if not self.greenlet:  # it has not begun
            self.done = True
            self.process.tasks.pop(self, None)
            return
        before, world.task = world.task, self
        try:
            self.greenlet.throw(Died)
        finally:
            world.task = before
        assert self.done, f"{self.process.name}: {self.name} outlived its process"


class World:
    """Time, order and chance.

    ``now`` is true time in seconds. ``note`` adds a line to the trace, whose SHA-256 says whether two runs were the
    same. What is drawn from ``random`` is part of the run.
    """

    def __init__(self, seed: int | str, *, keep_trace: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(f"world {seed}")
        self.now = 1000.0
        self.task: Task | None = None
        self.events = 0
        self.trace: list[str] | None = [] if keep_trace else None
        self.recent: list[str] = []
        self.failure: BaseException | None = None
        self._digest = hashlib.sha256()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.hub = greenlet.getcurrent()

    @property
    def process(self) -> Process | None:
        """Whose code runs."""
        return None if self.task is None else self.task.process

    def note(self, text: str) -> None:
        """A line of the trace."""
        line = f"{self.now - 1000:10.6f} {text}"
        self._digest.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    def remark(self, text: str) -> None:
        """What helps a reader of the trace and is not part of it."""
        if self.trace is not None:
            self.trace.append(f"{self.now - 1000:10.6f}   ({text})")

    @property
    def digest(self) -> str:
        """SHA-256 of the trace so far."""
        return self._digest.hexdigest()

    # Events

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Have ``event`` happen at ``moment``; it must not wait."""
        self._order += 1
        heapq.heappush(self._heap, (moment, self._order, event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Have ``event`` happen in ``seconds``."""
        self.at(self.now + seconds, event)

    def soon(self, event: Callable[[], None]) -> None:
        """Have ``event`` happen at once, after what is happening."""
        self.at(self.now, event)

    def run(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass until a moment, or until ``done``. Raises what a task raised; whether it is done."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            if done is not None and done():
                return True
            moment, _, event = heapq.heappop(heap)
            self.now = max(self.now, moment)
            self.events += 1
            if self.events > MOST_EVENTS:
                raise Violation(f"more than {MOST_EVENTS} events: something turns in circles")
            event()
            if self.failure is not None:
                raise self.failure
        if done is not None and done():
            return True
        self.now = max(self.now, until)
        return False

    # Tasks

    def spawn(self, process: Process, target: Callable[[], Any], name: str) -> Task:
        """Begin a task."""
        if not process.alive:
            raise Died
        task = Task(process, name, target)
        self.wake(task, task.ticket)
        return task

    def wake(self, task: Task, ticket: int) -> None:
        """Let a task that waits under ``ticket`` go on soon, unless something else has woken it."""
        if not task.done:
            self.after(self.random.random() * 0.0001, lambda: self._resume(task, ticket, True))

    def ticket(self) -> tuple[Task, int]:
        """What the present task is to be woken with; it is to wait next."""
        task = self.task
        assert task is not None, "only a task can wait"
        return task, task.ticket

    def wait(self, seconds: float | None = None) -> bool:
        """Wait to be woken; False when ``seconds`` of the process's own clock have passed first. Raises Died."""
        task = self.task
        assert task is not None, "only a task can wait"
        if not task.process.alive:
            raise Died
        ticket = task.ticket
        if seconds is not None:
            self.after(max(seconds, 0.0) / task.process.rate, lambda: self._resume(task, ticket, False))
        woken: bool = self.hub.switch()
        return woken

    def sleep(self, seconds: float) -> None:
        """Let the present task sleep."""
        self.wait(seconds)

    def _resume(self, task: Task, ticket: int, woken: bool) -> None:
        if task.done or task.ticket != ticket:
            return
        process = task.process
        if process.stalled_until > self.now:
            self.at(process.stalled_until, lambda: self._resume(task, ticket, woken))
            return
        task.ticket += 1
        self.task = task
        try:
            task.greenlet.switch(woken)
        except Exception as error:
            if process.alive and self.failure is None:
                self.failure = error
        finally:
            self.task = None
        if process.after is not None and process.alive:
            process.after()
