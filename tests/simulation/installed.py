"""The world in place of the machine: time, threads, queues, randomness, files and sockets of the product."""

from __future__ import annotations

import gc
import logging
import random
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import apsw
import pysyncobj.syncobj as library

from django_raftsqlite.node import archive, calls, fingerprint, host, process, snapshot_source, snapshot_target
from django_raftsqlite.raft import driver, pinned
from django_raftsqlite.raft import log as raft_log
from django_raftsqlite.sqlite import clock, connections, copying, wal
from django_raftsqlite.sqlite import vfs as replay_vfs

from . import disk
from .loop import LoopThread
from .network import Network, Transport
from .primitives import Threads
from .world import World

_OUTSIDE = ("raft.thread", "raft.transport", "raft.session", "raft.handshake", "sqlite.forking", "node.facts")
"""Modules that are replaced as a whole, are not used, or belong to the process that simulates."""

assert process, "the modules of the node are loaded"


class Substitute:
    """A module with some of its names replaced."""

    def __init__(self, module: object, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Log(raft_log.RaftLog):
    """The real log; it knows by itself what the disk really holds, and may be slow.

    ``terms`` are those of its entries; up to ``proven_index`` no power failure can take them away.
    """

    simulation: Any

    def __init__(self, path: Any, **arguments: Any) -> None:
        machine = self.simulation.machine_of(path)
        self._machine = machine
        self.proven_index = 0
        self.terms: dict[int, int] = {}
        super().__init__(path, **{**arguments, "tail_entries": self.simulation.scenario.tail_entries})
        rows: Any = self._execute("SELECT idx, term FROM entry")
        self.terms = dict(rows)
        # What a killed process wrote and did not sync is found, and is not on the disk yet.
        self.proven_index = 0 if machine.disk.unsynced(f"{self.path}-wal") else self.last_index
        machine.opened(self)

    def add(self, command: bytes, idx: int, term: int) -> None:
        super().add(command, idx, term)
        if self.last_index == idx:
            self.terms[idx] = term
            for gone in [index for index in self.terms if index > idx] if len(self.terms) > idx else ():
                del self.terms[gone]
            self.proven_index = min(self.proven_index, idx - 1)

    def _truncate(self, index: int) -> None:
        self.simulation.checks.dropped(self._machine, self.terms, index)
        super()._truncate(index)

    def restart(self, index: int, term: int, members: Any) -> None:
        self.simulation.checks.dropped(self._machine, self.terms, index + 1)
        super().restart(index, term, members)
        self.terms = {index: term}
        self.proven_index = index - 1

    def sync(self) -> None:
        machine = self._machine
        seconds = machine.sync_seconds()
        first = seconds * machine.world.random.random()
        if seconds:
            machine.world.sleep(first)
        super().sync()
        if not self.dirty and not machine.disk.unsynced(f"{self.path}-wal"):
            self.proven_index = self.last_index
        if seconds:
            machine.world.sleep(seconds - first)


def _modules() -> list[ModuleType]:
    package = "django_raftsqlite."
    outside = tuple(package + name for name in _OUTSIDE)
    layers = tuple(package + name for name in ("dbapi", "node", "raft", "sqlite"))
    return [module for name, module in sorted(sys.modules.items()) if name.startswith(layers) and name not in outside]


def _methods(module: ModuleType) -> list[FunctionType]:
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [function for kind in kinds for function in vars(kind).values() if isinstance(function, FunctionType)]


def _clock(threads: Threads, default: Any) -> Any:
    return threads.time.monotonic if default is time.monotonic else default


@contextmanager
def installed(world: World, network: Network, simulation: Any) -> Iterator[disk.DiskVFS]:
    """Everything that the product does in this thread belongs to the world, until the block ends."""
    threads = Threads(world)
    vfs = disk.DiskVFS(world, clock.now_ms)
    chance = random.Random(f"product {world.seed}")
    opened: list[apsw.Connection] = []

    def tracked(kind: Any, *arguments: Any, **keywords: Any) -> Any:
        connection = kind(*arguments, **keywords)
        opened.append(connection)
        owner = world.process
        if owner is not None:
            owner.connections.append(connection)
        return connection

    class BoundLog(Log):
        pass

    BoundLog.simulation = simulation
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for module in _modules():
            for name in ("time", "threading", "queue", "secrets"):
                if getattr(module, name, None) is sys.modules[name]:
                    put(module, name, getattr(threads, name))
            for function in _methods(module):
                if time.monotonic in (function.__defaults__ or ()):
                    defaults = tuple(_clock(threads, each) for each in function.__defaults__)
                    put(function, "__defaults__", defaults)
                if time.monotonic in (function.__kwdefaults__ or {}).values():
                    keywords = {name: _clock(threads, each) for name, each in function.__kwdefaults__.items()}
                    put(function, "__kwdefaults__", keywords)
        for each in (host, calls):
            put(each, "os", Substitute(each.os, getpid=lambda: 4711, urandom=chance.randbytes))
        put(archive, "os", Substitute(archive.os, urandom=chance.randbytes))
        put(process, "os", Substitute(process.os, urandom=simulation.restores.urandom))
        put(fingerprint, "_boot", lambda: str(simulation.machine_of_process(world.process).power_failures))
        system = disk.Calls(world, vfs.disks)
        for each in (snapshot_source, snapshot_target, copying, wal):
            put(each, "os", system)
        put(library, "monotonicTime", threads.time.monotonic)
        put(library, "random", chance)
        # Sets of members are gone through in the order of their hashes, which must not be addresses in memory.
        put(pinned.MemberNode, "__hash__", lambda member: zlib.crc32(member.id.encode()))
        put(driver, "LoopThread", partial(LoopThread, world))
        put(driver, "Transport", lambda config, identity, **calls: Transport(network, config, identity, **calls))
        put(driver, "RaftLog", BoundLog)
        put(driver, "lower_switch_interval", lambda: None)
        put(replay_vfs, "NAME", disk.VFS_NAME)
        put(clock, "_system_random", chance)
        put(raft_log, "apsw", Substitute(apsw, Connection=partial(tracked, apsw.Connection, vfs=disk.VFS_NAME)))
        put(connections, "Connection", partial(tracked, connections.Connection))
        logger = logging.getLogger("django_raftsqlite")
        put(logger, "disabled", True)
        for child in ("raft", "node", "dbapi", "sqlite"):
            put(logging.getLogger(f"django_raftsqlite.{child}"), "disabled", True)
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield vfs
        finally:
            for connection in opened:
                with suppress(apsw.Error):
                    connection.close(True)
            if collecting:
                gc.enable()
            gc.collect()
            vfs.unregister()
