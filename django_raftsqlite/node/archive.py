"""The archive: the leader keeps all committed entries somewhere else, so that any moment can be had back."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..raft.config import RaftView
from ..sqlite.tables import Archive
from .api import ArchiveConfig, ArchiveStore
from .compaction import Hold
from .missing import LogPort, Missing
from .segments import BadSegment, LogEntry, SegmentName, decode_segment, encode_segment, folder_of, parse_name
from .worker import Stopped, Worker

logger = logging.getLogger("django_raftsqlite.node")

SEGMENT_BYTES = 2 * 1024 * 1024
"""Of entries in one segment, before they are packed; at least one entry."""
LONGEST_RETRY = 60.0
CLOSE_TIMEOUT = 2.0
"""Seconds for which the end of an upload is waited for when the node stops; it is of no use, and harmless."""


class Archiver:
    """Ships committed entries while this node leads, and tells up to where they are archived.

    The storage is what counts: a new leader lists it, reads the newest segment again, and goes on behind it. So no
    entry is left out, and none is shipped twice, unless a deposed leader's last upload ends after that look: then
    both hold the same committed entries. ``archived`` is the newest index known to be in the storage (the leader's
    word, on other members), None where it is not known yet. What this node's log no longer has is got from members
    that have it (``missing``). ``gap`` is the index of the first entry behind one that the archive lacks, since all
    logs in reach were cut before it was shipped.

    The group's log gets an archive (``archive()``) by an entry of its own, for which ``begin(name)`` asks; and
    another one when it is begun anew with what was left of it (``raft recover``). So nothing is shipped before all is
    applied (``applied()``) that was committed when this node came to lead. ``told()`` is what the leader said, as
    :meth:`told` gives it.

    Loop thread; what waits for the storage is done by a thread of its own.
    """

    def __init__(
        self,
        config: ArchiveConfig,
        log: LogPort,
        *,
        name: str,
        call: Callable[..., object],
        missing: Missing,
        archive: Callable[[], Archive | None],
        begin: Callable[[bytes], object],
        told: Callable[[], Any],
        applied: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._log = log
        self._missing = missing
        self._archive = archive
        self._begin = begin
        self._leader_said = told
        self._applied = applied
        self._clock = clock
        self._worker = Worker(f"raftsqlite-archive {name}", call)
        self._store: ArchiveStore | None = None
        self._term: int | None = None  # in which this node, as the leader, knows where to go on
        self._led: tuple[int, int] | None = None  # the term, and what was committed when it began to lead in it
        self._busy = self._broken = False
        self._due = 0.0
        self._failures = 0
        self._name = b""
        self._sending: Sequence[LogEntry] = ()
        self._sure = False
        self._given_up: int | None = None
        self.archived: int | None = None
        self.gap: int | None = None
        self.problem: str | None = None
        self.segments = 0

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self) -> None:
        """End the thread, or leave it to its last upload. Not on the loop's thread."""
        self._worker.close(CLOSE_TIMEOUT)

    def status(self, view: RaftView) -> dict[str, Any]:
        """For the node's status. ``behind`` counts the entries that are not archived yet."""
        archive = self._archive()
        return {
            "name": None if archive is None else archive.name.hex(),
            "begun": None if archive is None else archive.begun,
            "index": self.archived,
            "behind": None if self.archived is None else max(view.commit_index - self.archived, 0),
            "gap": self.gap,
            "segments": self.segments,
            "problem": self.problem,
        }

    def told(self, view: RaftView) -> dict[str, Any]:
        """What this node says of it to the others; of the archive it is the leader's word that counts."""
        said = {"index": self.archived, "gap": self.gap, "problem": self.problem, "sure": self._sure}
        return {**said, "has": self._missing.has(view)}

    def hold(self, view: RaftView) -> Hold:
        """What of the log is yet to be archived, if need be by this node as the next leader."""
        index = view.first_index if self.archived is None else max(self.archived, view.first_index)
        return Hold(index, self._config.hold)

    def tick(self, view: RaftView) -> None:
        """Time passes; to be called often. Never raises: consensus goes on without it."""
        if self._broken:
            return
        try:
            self._tick(view)
        except Exception as error:
            self._broken = True
            self.problem = f"the log is not archived any more: {error!r}"
            logger.exception("the log is not archived any more")

    def _tick(self, view: RaftView) -> None:
        now = self._clock()
        if view.role != "leader" or not view.established:
            self._follow()
            return
        if self._led is None or self._led[0] != view.term:
            self._led = view.term, view.commit_index
        if self._busy or now < self._due or self._applied() < self._led[1]:
            return
        archive = self._archive()
        if archive is None:
            self._due = now + self._config.interval
            self._begin(os.urandom(16))
        elif not self._log.hears_a_quorum:
            return
        elif self._term != view.term or self._name != archive.name:
            self._look(archive, view.term)
        else:
            self._ship(archive, view)

    def _follow(self) -> None:
        self._term, self._due, self._failures, self._sure = None, 0.0, 0, False
        self._missing.drop()
        said = self._leader_said()
        if isinstance(said, dict) and said.get("sure"):
            self.archived, self.gap, self.problem = said["index"], said["gap"], said["problem"]

    # Where to go on ---------------------------------------------------------------------------------------

    def _look(self, archive: Archive, term: int) -> None:
        def look() -> int:
            return self._newest(archive)

        def looked(newest: int) -> None:
            if self._name != archive.name:
                self.gap = None
            self._term, self._name, self._sure, self._sending = term, archive.name, True, ()
            self._given_up = None
            self.archived = newest
            logger.info("the archive %s holds the log up to index %d", archive.name.hex(), newest)

        self._run(look, looked)

    def _newest(self, archive: Archive) -> int:
        """The last index in the storage; a segment that a leader's death left half written is removed."""
        store = self._opened()
        root = folder_of(archive.name)
        for folder in sorted(store.folders(root), reverse=True):
            names = [found for name in store.names(f"{root}/{folder}") if (found := parse_name(name)) is not None]
            for name in sorted(names, key=lambda each: each.last, reverse=True):
                try:
                    with store.open(name.path(archive.name)) as file:
                        decode_segment(name, archive.name, file.read())
                except BadSegment as error:
                    logger.warning("the archive's segment %s is written again: %s", name, error)
                    store.delete(name.path(archive.name))
                    continue
                return max(name.last, archive.begun - 1)
        return archive.begun - 1

    # Shipping ---------------------------------------------------------------------------------------------

    def _ship(self, archive: Archive, view: RaftView) -> None:
        assert self.archived is not None
        if self._sending and self._sending[0][0] == self.archived + 1:
            entries = self._sending  # what failed may be there in part: under this name, and no other
        else:
            found = self._next(self.archived, view)
            if found is None:
                return
            entries = self._sending = found
        if not entries:
            self._due = self._clock() + self._config.interval
            return
        more = entries[-1][0] < view.commit_index

        def ship() -> SegmentName:
            name, data = encode_segment(archive.name, entries)
            self._keep(archive, name, data)
            return name

        def shipped(name: SegmentName) -> None:
            self.segments += 1
            self.archived = max(self.archived or 0, name.last)
            if self.gap is not None and name.first < self.gap:
                self.gap = None  # an earlier leader's word, who was lost before anything was archived behind it
            if not more:
                self._due = self._clock() + self._config.interval

        self._run(ship, shipped)

    def _next(self, archived: int, view: RaftView) -> Sequence[LogEntry] | None:
        """What is to be shipped; None while others are asked for it."""
        # Of its first entry a log may have no more than the place.
        first = max(archived, view.first_index) + 1
        if first > archived + 1 and self._given_up != archived:
            found = self._missing.get(archived + 1, first - 1, view)
            if found is not None:
                return found or None
            self._given_up, self.gap = archived, first
            logger.error(
                "the archive lacks the log entries %d to %d, which were cut from the log before they could be "
                "archived, and which no member in reach has: no moment from then until the next backup can be "
                "restored. Take a backup now",
                archived + 1,
                view.first_index,
            )
        return self._log.entries(first, view.commit_index, SEGMENT_BYTES)

    def _keep(self, archive: Archive, name: SegmentName, data: bytes) -> None:
        """Write a segment, and read it again. One of this name that is there already may be half of it."""
        store, path = self._opened(), name.path(archive.name)
        if str(name) in store.names(path.rpartition("/")[0]):
            with store.open(path) as file:
                if file.read() == data:
                    return
            store.delete(path)
        store.write(path, io.BytesIO(data), lambda _: None)
        with store.open(path) as file:
            if file.read() != data:
                raise BadSegment(f"{path} is not what was written")

    # Inside -----------------------------------------------------------------------------------------------

    def _opened(self) -> ArchiveStore:
        if self._store is None:
            self._store = self._config.open()
        return self._store

    def _run(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self._busy = True

        def finished(result: Any) -> None:
            self._busy = False
            if not isinstance(result, Exception):
                self._failures, self.problem = 0, None
                done(result)
            elif not isinstance(result, Stopped):
                self._failures += 1
                wait = min(self._config.interval * 2 ** min(self._failures, 16), LONGEST_RETRY)
                self._due = self._clock() + wait
                problem = f"the log cannot be archived: {result}"
                if problem != self.problem:
                    logger.error("%s", problem)
                self.problem = problem

        self._worker.run(job, finished)
