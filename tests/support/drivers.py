"""Members of a group in one process, on loopback ports: real drivers, logs, sockets and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from django_raftsqlite.raft.config import RaftConfig, RaftView
from django_raftsqlite.raft.driver import RaftDriver

from .ports import free_ports

T = TypeVar("T")


def free_addresses(count: int) -> tuple[str, ...]:
    """Loopback addresses whose ports nobody has, in ascending order."""
    return tuple(sorted(f"127.0.0.1:{port}" for port in free_ports(count)))


def wait_until(condition: Callable[[], T], what: str, *, seconds: float = 15.0) -> T:
    """The first true value of ``condition``; AssertionError, with ``what``, after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)
    return value


class Member:
    """One member, which can be stopped and started again on the same log.

    ``applied`` is what a state machine would hold: (index, payload) in order, and as a real one it survives a
    restart of the driver; ``messages`` and ``views`` are what the driver told.
    """

    def __init__(self, config: RaftConfig, facts: dict[str, str] | None = None) -> None:
        self.config = config
        self.address = config.address
        self.facts = facts or {}
        self.applied: list[tuple[int, bytes]] = []
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.views: list[RaftView] = []
        self.threads: set[str] = set()
        self.driver: RaftDriver | None = None

    def start(self) -> RaftDriver:
        self.driver = RaftDriver(
            self.config,
            applied=self.applied[-1][0] if self.applied else 0,
            on_commit=self._commit,
            on_message=lambda peer, message: self.messages.append((peer, message)),
            on_view=self.views.append,
            facts=self.facts,
        )
        self.driver.start()
        return self.driver

    def stop(self, *, hand_over: bool = True) -> None:
        if self.driver is not None:
            self.driver.stop(timeout=5.0, hand_over=hand_over)
            self.driver = None

    def _commit(self, index: int, term: int, payload: bytes) -> None:
        self.threads.add(threading.current_thread().name)
        self.applied.append((index, payload))

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload in list(self.applied) if payload]

    def on_loop(self, fn: Callable[[RaftDriver], T]) -> T:
        """What ``fn(driver)`` returns when it is run on the driver's loop."""
        assert self.driver is not None
        driver = self.driver
        box: list[T] = []
        ran = threading.Event()

        def run() -> None:
            box.append(fn(driver))
            ran.set()

        assert driver.call(run), "the loop has ended"
        assert ran.wait(15), "the loop does not answer"
        return box[0]

    @property
    def view(self) -> RaftView:
        return self.on_loop(lambda driver: driver.view)

    def propose(self, payload: bytes) -> tuple[int, int] | None:
        return self.on_loop(lambda driver: driver.propose(payload))

    def read_index(self) -> int | None:
        assert self.driver is not None
        driver = self.driver
        box: list[int | None] = []
        done = threading.Event()

        def finish(index: int | None) -> None:
            box.append(index)
            done.set()

        driver.call(lambda: driver.read_index(finish))
        assert done.wait(15), "the read was not answered"
        return box[0]


class Group:
    """Members of one group; a context manager that stops them all."""

    def __init__(self, folder: Path, count: int = 3, **settings: Any) -> None:
        settings.setdefault("secret", "a secret of the tests")
        settings.setdefault("election_timeout", 0.3)
        settings.setdefault("durable", False)  # how long a disk takes is not what the tests are about
        addresses = free_addresses(count)
        self.members = [
            Member(RaftConfig(address, addresses, folder / f"n{number}.raft" / "log", **settings))
            for number, address in enumerate(addresses)
        ]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.stop(hand_over=False)

    def start(self) -> Group:
        for member in self.members:
            member.start()
        return self

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.driver is not None]

    def leader(self, *, other_than: str | None = None) -> Member:
        """Wait for an established leader that all living members agree on."""
        return self.leader_of(self.alive, other_than=other_than)

    def leader_of(self, members: list[Member], *, other_than: str | None = None) -> Member:
        """Wait for an established leader that these members agree on; failed ones have no say."""

        def find() -> Member | None:
            views = [(member, member.view) for member in members]
            sound = [(member, view) for member, view in views if view.role != "failed"]
            leaders = {view.leader for _, view in sound}
            for member, view in sound:
                if view.role == "leader" and view.established and leaders == {member.address} != {other_than}:
                    return member
            return None

        return wait_until(find, "a leader that all agree on")

    def commit(self, payload: bytes) -> Member:
        """Propose until a leader took it and applied it; the payload must be unique. Returns the leader."""
        while True:
            leader = self.leader()
            place = leader.propose(payload)
            if place is None:
                continue  # another one leads by now
            what = f"something is committed in the place of {payload!r}"
            if wait_until(lambda index=place[0]: self._at(index), what) == payload:  # type: ignore[misc]
                wait_until(lambda leader=leader: payload in leader.payloads, f"{payload!r} is applied")  # type: ignore[misc]
                return leader

    def _at(self, index: int) -> bytes | None:
        """What a member has applied at an index; of Raft's own entries that they are such."""
        return next((said or b"-" for member in self.alive for at, said in list(member.applied) if at == index), None)

    def everywhere(self, payload: bytes) -> None:
        """Wait until all living members have applied the payload."""
        for member in self.alive:
            wait_until(lambda member=member: payload in member.payloads, f"{member.address} applied {payload!r}")


def other_settings(member: Member, **changes: Any) -> Member:
    """The same member with other settings."""
    return Member(replace(member.config, **changes), member.facts)
