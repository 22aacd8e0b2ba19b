"""The apply thread: committed entries in, the database file forward, outcomes out."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import apsw

from ..sqlite.connections import Connection, Snapshot
from ..sqlite.copying import Layout
from ..sqlite.errors import Distrust, NodeFault
from ..sqlite.machine import StateMachine
from ..sqlite.tables import Archive
from .applying import Applying, Installation, Outcomes, Question, State
from .checkpoints import Checkpoints
from .divergence import Digests
from .lane import ScratchLane
from .latch import Latch
from .progress import Applied
from .worker import Stopped

logger = logging.getLogger("django_raftsqlite.node")

COUNT_EVERY = 0.5
RETRY_FOR = 5.0
CHECK_EVERY = 1.0
"""Seconds without an entry after which it is looked whether another program changed the file."""
ASK_EVERY = 0.1
LONG = 0.25
"""Seconds after which the application of an entry is something that others are told of."""
SHOWN = 80
"""Characters of a statement that status shows."""
QUEUE_BYTES = 64 * 1024 * 1024
QUEUE_ENTRIES = 8192


class Applier:
    """Owns the state machine, and the one thread that may use it.

    :meth:`put` is called on the loop thread, with every committed index in order; ``settled`` and ``failed`` are
    called on the apply thread, and ``distrusted`` instead of ``failed`` where the file is not to be relied on. After
    a fault nothing more is applied: applying the next entry would fork this node. A copy that is installed over a
    file that is not to be relied on ends that. ``measured`` is told the seconds, transactions and bytes of each
    entry, on the apply thread; ``written_back`` says, when it is closed, whether the file is on the disk without its
    WAL. ``state``, ``digests``, ``applied`` and :meth:`applying` may be looked at from any thread; ``resyncs`` is how
    often the file was replaced as a whole.
    """

    def __init__(
        self,
        machine: StateMachine,
        lane: ScratchLane,
        *,
        name: str,
        wal_limit: int,
        oldest: Callable[[], Snapshot | None],
        settled: Callable[[Outcomes], None],
        failed: Callable[[str], None],
        distrusted: Callable[[str], None],
        verify: Callable[[bytes, int], None] = lambda _id, _index: None,
        measured: Callable[[float, int, int], object] = lambda _seconds, _transactions, _bytes: None,
        protocol: Callable[[int], object] = lambda _version: None,
        halted: bool = False,
    ) -> None:
        """``protocol`` is told when the group uses another one; ``halted``: as after :meth:`halt`."""
        self._machine = machine
        self._lane = lane
        self._settled = settled
        self._failed = failed
        self._distrusted = distrusted
        self._verify = verify
        self._measured = measured
        self._protocol = protocol
        self._queue: queue.SimpleQueue[tuple[int, int, bytes] | Installation | Question | None] = queue.SimpleQueue()
        self._checkpoints = Checkpoints(
            machine, lane, wal_limit, name=name, oldest=oldest, busy=lambda: not self._queue.empty()
        )
        # Bytes in, by the loop thread; bytes out, by the apply thread: one writer each, so no update is lost.
        self._bytes_in = 0
        self._bytes_out = 0
        self._stopping = False
        self._stopped = halted
        self._tending = True
        self._counted = time.monotonic()
        self._present: tuple[int, float] | None = None
        self.written_back = False
        self.resyncs = 0
        self.applied = Applied(machine.applied_index)
        self.digests = Digests()
        self.state = self._look()
        self._thread = threading.Thread(target=self._run, name=f"raftsqlite-apply {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, index: int, term: int, payload: bytes) -> None:
        """An entry is committed; an empty payload is Raft's own. Loop thread."""
        self._bytes_in += len(payload)
        self._queue.put((index, term, payload))

    def halt(self) -> None:
        """Apply nothing more, after the present entry: the file is not to be relied on. Any thread."""
        self._stopped = True

    def install(
        self, copy: Path, index: int, done: Callable[[Exception | None], object], *, resync: bool = False
    ) -> None:
        """Replace the file's content when what was put before is applied, or dropped after :meth:`halt`. Loop thread.

        Nothing may be put after it until ``done`` is called, on the apply thread: with None, or with why the old
        content is still there. When that cannot be said, ``failed`` is called instead. ``resync``: the file itself is
        replaced, whatever has become of it.
        """
        self._queue.put(Installation(copy, index, done, resync))

    def confirm(self, go_on: Callable[[], object], *, resyncs: int) -> None:
        """Return when it is sure that what was read of the file since ``resyncs`` was its value is the group's alone.

        Another program's write may be found up to a second later than a copy is made of it. ``go_on`` is called
        again and again, and may raise to end the wait. Raises Distrust, and Stopped when nothing is applied any more
        or the file is another one. For a thread that may wait.
        """

        def left() -> float:
            go_on()
            return ASK_EVERY

        question = Question()
        self._queue.put(question)
        answer = question.wait(left)
        if isinstance(answer, Exception):
            raise answer
        if self.resyncs != resyncs:
            raise Stopped

    def room(self) -> bool:
        """Whether more should be handed over: what waits is bounded in memory."""
        if self._stopped:
            return False
        return self._bytes_in - self._bytes_out < QUEUE_BYTES and self._queue.qsize() < QUEUE_ENTRIES

    def applying(self) -> Applying | None:
        """The entry that is being applied, if that takes long."""
        present = self._present
        if present is None or (seconds := time.monotonic() - present[1]) < LONG:
            return None
        text = self._machine.statement
        return Applying(present[0], seconds, " ".join(text[: 4 * SHOWN].split())[:SHOWN])

    @property
    def wal_bytes(self) -> int | None:
        """Size of the -wal file, if it can be had."""
        try:
            return self._machine.wal_bytes
        except OSError:
            return None

    def sync(self) -> int:
        """Have the file on the disk, up to an index that is returned; any thread. Raises OSError."""
        return self._machine.sync()

    def pin(self) -> Connection:
        """See :meth:`StateMachine.pin`. Apply thread."""
        return self._machine.pin()

    @property
    def layout(self) -> Layout:
        """The layout of the file."""
        return self._machine.layout

    @property
    def archive(self) -> Archive | None:
        """The archive of the group's log, if it was begun."""
        return self._machine.archive

    def is_open(self, origin: bytes) -> bool:
        """Whether the origin's requests are accepted. Apply thread."""
        return self._machine.is_open(origin)

    def close(self) -> None:
        """Apply what was put, end the thread, close the file. Scratch is closed."""
        self._stopping = True
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        try:
            if not self._stopped:
                self._machine.watch.check()
                frames, written = self._machine.write_back()
                self.written_back = frames == written
        except Distrust as error:
            self._distrusted(str(error))
        except apsw.Error:
            logger.exception("the last look at the file failed")
        finally:
            self._machine.close()

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            if isinstance(entry, Installation):
                self._install(entry)
                continue
            if isinstance(entry, Latch):
                entry.set(self._answer())
                continue
            if not self._stopped:
                try:
                    self._apply(*entry)
                except Distrust as error:
                    self._stopped = True
                    self._distrusted(str(error))
                except Exception as error:  # whatever it was
                    self._stopped = True
                    logger.exception("log entry %d cannot be applied", entry[0])
                    self._failed(f"log entry {entry[0]} could not be applied: {error}")
            self._bytes_out += len(entry[2])

    def _answer(self) -> Exception | bool:
        if self._stopped:
            return Stopped()
        try:
            self._check()
        except Distrust as error:
            self._stopped = True
            self._distrusted(str(error))
            return error
        except Exception as error:
            return error
        return True

    def _install(self, wanted: Installation) -> None:
        def go_on() -> None:
            if self._stopping:
                raise Stopped

        if self._stopped != wanted.resync:
            wanted.done(Stopped())
            return
        machine, problem = self._machine, None
        self._present = wanted.index, time.monotonic()
        try:
            with self._lane.apply():
                if wanted.resync:
                    with self._lane.without_scratch():
                        machine.replace(wanted.copy, go_on)
                else:
                    machine.install(wanted.copy, go_on)
                    self._lane.replaced()
        except Distrust as error:
            self._stopped = True
            wanted.done(error)
            self._distrusted(str(error))
            return
        except Exception as error:
            problem = error
            if not wanted.resync and (isinstance(error, OSError) or machine.applied_index >= wanted.index):
                self._stopped = True
                logger.exception("the copy %s cannot be taken over", wanted.copy)
                self._failed(f"a copy of another node's database could not be taken over: {error}")
                return
        finally:
            self._present = None
        if problem is None:
            self._protocol(machine.protocol)
            self.digests.clear()
            self.state = self._look()
            self.applied.jump(machine.applied_index)
            if wanted.resync:
                self.resyncs += 1
                self._stopped, self._tending = False, True
        wanted.done(problem)
        self._settled([])

    def _check(self) -> None:
        """Find what another program did to the file, without waiting for the next entry."""
        if self._machine.watch.looks_changed():
            with self._lane.apply():
                self._machine.watch.check()

    def _look(self) -> State:
        machine = self._machine
        self.digests.add(machine.applied_index, machine.digest)
        return State(machine.applied_index, machine.base, machine.digest, machine.counts(), machine.protocol)

    def _next(self) -> tuple[int, int, bytes] | Installation | Question | None:
        """The next entry, which is waited for; meanwhile the WAL is kept small, but not by a node that failed."""
        while not self._stopped and self._tending:
            try:
                self._checkpoints.tend()
                left = self._checkpoints.left()
                with suppress(queue.Empty):
                    return self._queue.get(timeout=CHECK_EVERY if left is None else min(left, CHECK_EVERY))
                self._check()
            except Distrust as error:
                self._stopped = True
                self._distrusted(str(error))
            except Exception:
                self._tending = False
                logger.exception("the WAL is not kept below its limit any more")
        return self._queue.get()

    def _apply(self, index: int, term: int, payload: bytes) -> None:
        if not payload:
            self.applied.advance(index)
            return
        began = time.monotonic()
        self._present = index, began
        try:
            outcomes = self._until_it_works(index, term, payload)
        finally:
            self._present = None
        self._measured(time.monotonic() - began, len(outcomes), len(payload))
        machine, counts = self._machine, self.state.counts
        if time.monotonic() - self._counted > COUNT_EVERY:
            self._counted, counts = time.monotonic(), machine.counts()
        elif counts["parted"] != machine.parted:
            counts = {**counts, "parted": machine.parted}
        if machine.protocol != self.state.protocol:
            self._protocol(machine.protocol)
        self.digests.add(index, machine.digest)
        self.state = State(index, machine.base, machine.digest, counts, machine.protocol)
        self.applied.advance(index)
        for verification in machine.verifications:
            self._verify(verification, index)
        self._settled(outcomes)

    def _until_it_works(self, index: int, term: int, payload: bytes) -> Outcomes:
        give_up = time.monotonic() + RETRY_FOR
        while True:
            try:
                with self._lane.apply() as settled:
                    lineage = self._machine.lineage
                    outcomes = self._machine.apply(index, term, payload)
                    if self._machine.lineage != lineage:
                        self._lane.replaced()
                    settled(outcomes)
                    return outcomes
            except NodeFault as fault:
                if not fault.retry or time.monotonic() > give_up or self._stopping:
                    raise
                time.sleep(0.01)
