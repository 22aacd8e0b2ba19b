"""The state of a moment: a backup from before it, and what the archive holds of the log since, applied again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw

from ..node.api import NodeConfig
from ..node.segments import BadSegment, LogEntry, SegmentName, decode_segment, folder_of, parse_name
from ..sqlite.entry import decode_entry
from ..sqlite.errors import NodeFault
from ..sqlite.machine import StateMachine
from .keeping import Found, fetch, find_backups
from .manifest import Manifest
from .places import Place
from .progress import SILENT, Progress


class NoMoment(Exception):
    """The state of that moment cannot be had. The text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A moment: the state after the log entry ``index``, or that of ``time`` (aware): after the last entry that the
    leader wrote down at that time or before. One of them is None."""

    index: int | None = None
    time: datetime | None = None

    def __str__(self) -> str:
        return f"log index {self.index}" if self.time is None else self.time.isoformat()

    def passed(self, index: int, milliseconds: int) -> bool:
        """Whether an entry is behind the moment."""
        if self.time is None:
            assert self.index is not None
            return index > self.index
        return milliseconds > self.time.timestamp() * 1000


@dataclass(frozen=True, slots=True)
class Reached:
    """What was had: the state after ``index``, whose entry is of ``time`` (None where it has none of its own).

    ``complete``: the archive goes on behind it, so nothing that belongs to the moment can be missing.
    """

    base: Manifest
    index: int
    time: datetime | None
    complete: bool
    digest: str


class Log:
    """The archive of one group's log, in a place, and the digests that backups of it had by their log index.

    Raises NoMoment where it is not whole, and PlaceError.
    """

    def __init__(self, place: Place, archive: str, found: Iterable[Found]) -> None:
        self._place = place
        self._archive = bytes.fromhex(archive)
        manifests = [each.manifest for each in found if each.manifest is not None]
        self._digests = {each.index: each.digest for each in manifests if each.archive == archive}

    def segments(self) -> list[SegmentName]:
        """What there is, in the order of the entries."""
        root = folder_of(self._archive)
        names = [
            parse_name(name) for folder in self._place.folders(root) for name in self._place.names(f"{root}/{folder}")
        ]
        return sorted(name for name in names if name is not None)

    def entries(self, first: int) -> Iterator[LogEntry]:
        """The entries from ``first`` on, without a gap and each once, up to the end of what is archived.

        That may be a segment that was not written to its end.
        """
        wanted = first
        broken = ""
        for name in self.segments():
            if name.last < wanted:
                continue
            if name.first > wanted:
                raise NoMoment(f"the archive lacks the log entries {wanted} to {name.first - 1}{broken}")
            try:
                entries = self._read(name)
            except BadSegment as error:
                # Another one may hold the same entries: this one was begun by a leader that died.
                broken = f"; of {name}: {error}"
                continue
            for entry in entries:
                if entry[0] >= wanted:
                    yield entry
            wanted, broken = name.last + 1, ""

    def compare(self, machine: StateMachine) -> None:
        """Compare what the entries lead to with what was backed up."""
        digest = self._digests.get(machine.applied_index)
        if digest is not None and digest != machine.digest.hex():
            raise NoMoment(
                f"at log index {machine.applied_index} a backup has another digest than the entries lead to"
            )

    def _read(self, name: SegmentName) -> list[LogEntry]:
        with closing(self._place.open(name.path(self._archive))) as file:
            return decode_segment(name, self._archive, file.read())


def bases(found: list[Found], target: Target) -> list[Manifest]:
    """The backups that a moment may be had from, the best first. Raises NoMoment."""
    usable = [each.manifest for each in found if each.manifest is not None and each.manifest.archive is not None]
    if not usable:
        raise NoMoment("there is no backup that was taken since the archive was begun: take one")
    if target.index is not None:
        # Of another group, or of one that was begun anew, the same index is another entry: the newest one is meant.
        newest = usable[-1].archive
        before = [each for each in usable if each.archive == newest and each.index <= target.index]
        before.sort(key=lambda each: each.index)
    else:
        assert target.time is not None
        before = [each for each in usable if each.moment <= target.time]
    if not before:
        oldest = min(usable, key=lambda each: each.moment)
        raise NoMoment(
            f"there is no backup from before {target}: the oldest one is of {oldest.time}, log index {oldest.index}"
        )
    return before[::-1]


def replay(
    config: NodeConfig,
    places: tuple[Place, Place],
    target: Target,
    path: Path,
    progress: Progress = SILENT,
) -> Reached:
    """Write the state of a moment to ``path``, from a backup in the first place and the archive in the other.

    Entries are applied as every node applies them; a backup that was taken on the way must have the same digest.
    Raises NoMoment, NoBackup, PlaceError, OSError.
    """
    place, archive = places
    found = find_backups(place)
    for base in bases(found, target):
        assert base.archive is not None
        log = Log(archive, base.archive, found)
        if target.time is not None and _begins_behind(log, base, target):
            continue  # its node's clock was behind the leader's
        with progress.step(f"fetching {base.file} from {place}", base.size) as told:
            fetch(place, base, path, told)
        progress.say(f"applying the log entries from {base.index + 1} on")
        return _apply(config, log, base, target, path)
    raise NoMoment(f"there is no backup from before {target}")


def _begins_behind(log: Log, base: Manifest, target: Target) -> bool:
    for _, _, payload in log.entries(base.index):
        return bool(payload) and target.passed(base.index, decode_entry(payload).clock)
    return False


def _apply(config: NodeConfig, log: Log, base: Manifest, target: Target, path: Path) -> Reached:
    try:
        machine = StateMachine(path, config.registrars, mode=config.mode, durable=False)
    except apsw.Error as error:
        raise NoMoment(f"{base.file} cannot be used: {error}") from error
    clock, index, complete = 0, base.index, base.index == target.index
    try:
        for index_, term, payload in log.entries(base.index + 1):
            # Log entries are in order of time, but for a leader whose clock is behind that of the one before.
            clock = max(clock, decode_entry(payload).clock if payload else 0)
            if complete or target.passed(index_, clock):
                complete = True
                break
            if payload:
                machine.apply(index_, term, payload)
                log.compare(machine)
            index = index_
            complete = index == target.index
        if target.index is not None and not complete:
            raise NoMoment(f"the archive ends at log index {index}")
        time = datetime.fromtimestamp(clock / 1000, UTC) if clock and index > base.index else None
        return Reached(base, index, time, complete, machine.digest.hex())
    except NodeFault as error:
        raise NoMoment(f"the log entry behind {machine.applied_index} cannot be applied: {error}") from error
    finally:
        machine.close()


def prune_archive(backups: Place, archive: Place) -> int:
    """Remove the segments that no backup leads to any more; how many. Raises PlaceError.

    Of an archive without a backup all stays: its first one may be on its way.
    """
    oldest: dict[str, int] = {}
    for each in find_backups(backups):
        if each.manifest is not None and each.manifest.archive is not None:
            name, index = each.manifest.archive, each.manifest.index
            oldest[name] = min(oldest.get(name, index), index)
    removed = 0
    for name, index in oldest.items():
        for segment in Log(archive, name, ()).segments():
            # The entry of the backup itself tells of which time it is.
            if segment.last < index:
                archive.delete(segment.path(bytes.fromhex(name)))
                removed += 1
    return removed


def parse_moment(text: str) -> datetime:
    """A moment in ISO 8601 with its offset, such as 2026-11-20T14:03:00Z. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no offset: write 2026-11-20T14:03:00Z for UTC, or +01:00 at the end")
    return moment
