"""What the archive is kept in: slow, down now and then, with files that a dead writer has left half written."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import apsw

from django_raftsqlite.backups.moments import Log
from django_raftsqlite.node.segments import BadSegment, SegmentName, decode_segment, parse_name
from django_raftsqlite.sqlite.machine import StateMachine

from .checks import hash_payload
from .world import Process, Violation

if TYPE_CHECKING:
    from .machine import Machine
    from .restores import Backup
    from .simulation import Simulation

FAILS = 0.03
NEVER = -1.0


@dataclass
class Write:
    """A segment that was written to its end: by whom, after which look at the storage, and when."""

    name: SegmentName
    writer: str
    looked: float
    ended: float


class Storage:
    """An :class:`~django_raftsqlite.node.api.ArchiveStore` that all machines share; ``down`` fails all calls.

    ``gaps`` are the indexes behind what archivers said that the archive lacks.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._random = simulation.chance("storage")
        self._slow = self._random.choice([0.0005, 0.005, 0.05])
        self._looked: dict[str, float] = {}
        self._writes: dict[str, Write] = {}
        self.files: dict[str, bytes] = {}
        self.down = False
        self.gaps: set[int] = set()

    def __str__(self) -> str:
        return "the simulated storage"

    def folders(self, folder: str = "") -> list[str]:
        """See ArchiveStore. An archiver begins its look at the storage with this."""
        self._call()
        self._looked[self._writer] = self._world.now
        return sorted(
            {path.split("/")[folder.count("/") + 1] for path in self.files if path.startswith(f"{folder}/")}
        )

    def names(self, folder: str = "") -> list[str]:
        """See ArchiveStore."""
        self._call()
        return [path.rpartition("/")[2] for path in self.files if path.rpartition("/")[0] == folder]

    def open(self, name: str) -> IO[bytes]:
        """See ArchiveStore."""
        self._call()
        if name not in self.files:
            raise FileNotFoundError(name)
        return io.BytesIO(self.files[name])

    def write(self, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
        """See ArchiveStore."""
        data = source.read()
        self._call()
        self.files[name] = data[: self._random.randrange(len(data))]
        self._call()
        self.files[name] = data
        told(len(data))
        segment = parse_name(name.rpartition("/")[2])
        assert segment is not None
        self._writes[name] = Write(segment, self._writer, self._looked.get(self._writer, NEVER), self._world.now)
        self._world.note(f"{self._writer} archives {segment.first} to {segment.last}")

    def delete(self, name: str) -> None:
        """See ArchiveStore."""
        self._call()
        del self.files[name]
        self._writes.pop(name, None)

    @property
    def _writer(self) -> str:
        process = self._world.process
        return "" if process is None else process.name

    def _call(self) -> None:
        if self._simulation.settling:
            return
        self._world.sleep(self._random.expovariate(1 / self._slow))
        if self.down or self._random.random() < FAILS:
            raise OSError("the storage cannot be reached")

    def lacks(self, machine: Machine, gap: int) -> None:
        """A host says that the archive lacks what comes before ``gap``. Nobody in its reach has that."""
        if gap in self.gaps:
            return
        self.gaps.add(gap)
        assert machine.host is not None and machine.host._archiver is not None
        archived = machine.host._archiver.archived
        assert archived is not None
        reach = machine.host._core.heard()
        self._world.note(f"{machine.address} says that the archive lacks {archived + 1} to {gap - 1}")
        for other in self._simulation.there:
            if other.host is None or other.replica is None or other.address not in reach or other.host.failed:
                continue
            if other.replica.first_index <= archived < other.replica.commit_index:
                raise Violation(f"{other.address} has the entry behind {archived}, which {machine.address} lacks")

    # In the end

    def check(self) -> None:
        """All that was committed since the archive was begun is in it, once.

        But for what a leader never had, since its log begins with a copy that it took as a follower, and what nobody
        in its reach had either: it says so.
        """
        leader = self._simulation.leader()
        assert leader is not None and leader.host is not None
        archive = leader.host._applier.archive
        assert archive is not None
        covered: set[int] = set()
        sound: list[Write] = []
        for path, data in self.files.items():
            write = self._writes.get(path)
            name = parse_name(path.rpartition("/")[2])
            assert name is not None
            try:
                entries = decode_segment(name, archive.name, data)
            except BadSegment:
                continue
            assert write is not None
            if write.looked == NEVER:
                raise Violation(f"{write.writer} archived {write.name} without a look at what is there")
            self._check_overlap(write, sound)
            sound.append(write)
            for index, term, payload in entries:
                covered.add(index)
                if self._simulation.checks.entries.get(index) != (term, hash_payload(payload)):
                    raise Violation(f"the archive has another entry {index} than was committed")
        archived = leader.host._archiver.archived if leader.host._archiver is not None else None
        assert archived is not None
        lacking = set(range(archive.begun, archived + 1)) - covered
        copies = self._simulation.checks.copies
        if lacking and not any(max(lacking) == gap - 1 and gap - 1 in copies for gap in self.gaps):
            raise Violation(f"the archive lacks the entries {sorted(lacking)}; gaps were told before {self.gaps}")
        self._simulation.archived += len(covered)
        self._replay(archive.name, lacking, archive.begun, archived)

    @staticmethod
    def _check_overlap(write: Write, others: list[Write]) -> None:
        for other in others:
            apart = write.name.last < other.name.first or other.name.last < write.name.first
            same = (write.writer, write.looked) == (other.writer, other.looked)
            seen = other.ended < write.looked or write.ended < other.looked
            if not apart and (same or seen):
                raise Violation(f"entries were archived twice: {write} and {other}")

    def _replay(self, archive: bytes, lacking: set[int], begun: int, archived: int) -> None:
        """A backup and the segments since lead to the state of any index."""
        first = max([begun - 1, *lacking])
        bases = [backup for backup in self._simulation.restores.backups if first <= backup.index < archived]
        if not bases:
            return
        base = self._random.choice(bases)
        target = self._random.randint(base.index, archived)
        process = Process(self._world, "the moment")
        over: list[bool] = []
        self._world.spawn(process, lambda: over.append(self._applied(archive, base, target)), "replay")
        self._simulation.wait(lambda: bool(over), 5.0, f"the state of {target} from the backup of {base.index}")

    def _applied(self, archive: bytes, base: Backup, target: int) -> bool:
        path = self._simulation.desk.folder / "moment"
        path.write_bytes(base.copy.read_bytes())
        states = self._simulation.checks.states
        place: Any = self
        machine = StateMachine(path, (), mode=0o600, durable=False)
        with closing(machine):
            for index, term, payload in Log(place, archive.hex(), ()).entries(base.index + 1):
                if index > target:
                    break
                if payload:
                    machine.apply(index, term, payload)
                    found = machine.digest, machine.base.version
                    # Not there: all nodes died before they said that they had applied it.
                    if states.get(index, found) != found:
                        raise Violation(f"the archive leads to another state after {index} than the log")
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            if self._simulation.spoiled(connection):
                raise Violation("what another program wrote is in the state of a moment")
        self._simulation.moments += 1
        return True
