"""docs/runbook.md as a program: its lines, the machines they are run on, and what became of the writes meanwhile."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .cluster import ROOT, inspect_file, node_environment, wait_until
from .starter import Started, Starter

PAGE = ROOT / "docs" / "runbook.md"
SETTINGS = "tests.process.runbook_settings"
PATIENCE = 90.0
VOTING = {"leader", "follower", "candidate"}
SERVICES = {"shop-node", "shop-web"}
ANSWERED = {("raft", "restore")}  # a person is asked, and types the name of the database; or --yes


class Line(NamedTuple):
    """A line of a block: the command, and what stands behind ``#``."""

    words: tuple[str, ...]
    note: str


class Runbook:
    """The blocks of the page by section, and which lines were taken from it: none may be forgotten."""

    def __init__(self, page: str) -> None:
        self.sections: dict[str, list[list[Line]]] = {}
        self._left: set[tuple[str, Line]] = set()
        for heading, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
            blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            self.sections[heading] = [[_line(each) for each in block.splitlines()] for block in blocks]
            self._left |= {(heading, line) for block in self.sections[heading] for line in block}

    def take(self, section: str, number: int = 0) -> list[Line]:
        """The lines of a section's block."""
        lines = self.sections[section][number]
        self._left -= {(section, line) for line in lines}
        return lines

    @property
    def left(self) -> set[tuple[str, str]]:
        """Sections and commands that were not taken."""
        return {(section, shlex.join(line.words)) for section, line in self._left}


def _line(text: str) -> Line:
    command, _, note = text.partition(" #")
    return Line(tuple(shlex.split(command)), note.strip())


def next_version(folder: Path) -> Path:
    """A copy of this package as the version after it would be: another number, and one more protocol."""
    package = folder / "django_raftsqlite"
    shutil.copytree(ROOT / "django_raftsqlite", package, ignore=shutil.ignore_patterns("__pycache__"))
    _edit(package / "__init__.py", r'^__version__ = ".*"$', '__version__ = "99.0.0"')
    protocol = package / "node" / "protocol.py"
    _edit(
        protocol,
        r"^OLDEST, NEWEST = (\d+), (\d+)$",
        lambda found: f"OLDEST, NEWEST = {found[1]}, {int(found[2]) + 1}",
    )
    told = folder / "django_raftsqlite-99.0.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: django-raftsqlite\nVersion: 99.0.0\n")
    return folder


def _edit(path: Path, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count == 1, (path, pattern)
    path.write_text(text)


class Machine:
    """One of the machines: its settings, and its two services, which ``starter`` starts, with a version of the
    package.

    ``web`` is a :mod:`~tests.process.pen`, which attaches to ``node``.
    """

    def __init__(self, folder: Path, index: int, address: str, options: Mapping[str, Any], starter: Starter) -> None:
        self.index = index
        self.address = address
        self.folder = folder / f"machine{index}"
        self.folder.mkdir()
        self.file = self.folder / "db.sqlite3"
        self.options: dict[str, Any] = {"node": address, "timeout": 20, **options}
        self.starter = starter
        self.running: dict[str, Started] = {}
        self._backups = folder / "backups"
        self._records: list[Path] = []
        self._commands = 0

    def __repr__(self) -> str:
        return f"<machine {self.index} {self.address}>"

    def start(self, service: str) -> None:
        """``systemctl start``."""
        assert service not in self.running, f"{self}: {service} runs"
        words, options = ["manage", "raft", "node"], self.options
        if service == "shop-web":
            self._records.append(self.folder / f"record{len(self._records)}")
            self._records[-1].touch()
            words = ["tests.process.pen", f"{self.index}.{len(self._records)}", str(self._records[-1])]
            options = {**options, "host": False}
        environment = self._environment(options)
        self.running[service] = self.starter.start(words, environment, self.folder, self.folder / f"{service}.log")

    def stop(self, service: str) -> None:
        """``systemctl stop``."""
        started = self.running.pop(service, None)
        if started is not None:
            started.send_signal(signal.SIGTERM)
            status = started.wait(PATIENCE)
            assert status == 0, f"{self}: {service} ended with {status}\n{self.tail()}"

    def kill(self) -> None:
        """Both services end as when the machine burns down."""
        for started in self.running.values():
            started.send_signal(signal.SIGKILL)
        while self.running:
            self.running.popitem()[1].wait(PATIENCE)

    def manage(self, *words: str, expected: int | None = 0) -> str:
        """A command; what it prints. ``expected``: its exit status, None where that may be any."""
        status, printed = self.run(*words)
        told = f"{self}: {shlex.join(words)} ended with {status}\n{printed}"
        assert expected in {None, status}, f"{told}\n{self.tail()}"
        return printed

    def run(self, *words: str) -> tuple[int, str]:
        """A command; its exit status, and what it prints."""
        self._commands += 1
        output = self.folder / f"command{self._commands}"
        environment = self._environment(self.options)
        status = self.starter.start(["manage", *words], environment, self.folder, output).wait(120)
        return status, output.read_text()

    def status(self) -> dict[str, Any] | None:
        """``raft status``; None while nobody hosts the node."""
        printed = self.manage("raft", "status", "--format", "json", expected=None)
        try:
            found: dict[str, Any] = json.loads(printed)
        except ValueError:
            return None
        return found

    def leads(self) -> bool:
        """Whether this one leads the group."""
        return (self.status() or {}).get("leader") == self.address

    def tail(self) -> str:
        """The ends of its logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {log}\n" + "\n".join(log.read_text().splitlines()[-40:]) for log in logs)

    def written(self) -> list[Written]:
        """What its web servers did, one after the other."""
        return [write for record in self._records for write in _read(record)]

    def _environment(self, options: Mapping[str, Any]) -> dict[str, str]:
        settings = {"NAME": str(self.file), "OPTIONS": dict(options)}
        return node_environment(settings, {"TESTPROJECT_BACKUPS": str(self._backups)})


@dataclass
class Written:
    """A write: when it began and when it was acknowledged (None: it was not), in seconds of the monotonic clock."""

    text: str
    began: float
    ended: float | None = None


def _read(record: Path) -> list[Written]:
    writes: list[Written] = []
    for line in record.read_text().split("\n")[:-1]:
        kind, seconds, text = line.split(" ", 2)
        if kind == "?":
            writes.append(Written(text, float(seconds)))
        else:
            assert writes[-1].text == text
            writes[-1].ended = float(seconds)
    return writes


@dataclass
class Step:
    """A section while it is carried out."""

    name: str
    began: float
    ended: float = 0.0


@dataclass
class Crew:
    """Does what the page says on the machines.

    ``stands_for`` has for what is written on the page (an address, a host, a folder) what it is here.
    """

    book: Runbook
    folder: Path
    present: Starter
    upgraded: Starter
    machines: list[Machine] = field(default_factory=list)
    stands_for: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def machine(self, address: str, **options: Any) -> Machine:
        """A new machine, with the newest version that any other has."""
        upgraded = any(each.starter is self.upgraded for each in self.machines)
        starter = self.upgraded if upgraded else self.present
        self.machines.append(Machine(self.folder, len(self.machines), address, options, starter))
        return self.machines[-1]

    @property
    def desk(self) -> Machine:
        """A machine outside of the group, where certificates are made."""
        if self._desk is None:
            self._desk = Machine(self.folder, -1, "127.0.0.1:1", {}, self.present)
        return self._desk

    _desk: Machine | None = None

    def begin(self, name: str) -> None:
        """A section begins, and the one before ends."""
        self.end()
        self.steps.append(Step(name, time.monotonic()))

    def end(self) -> None:
        """The section ends."""
        if self.steps and not self.steps[-1].ended:
            self.steps[-1].ended = time.monotonic()

    def do(self, lines: Sequence[Line], here: Machine, *, expected: int | None = 0, **places: Machine) -> None:
        """Carry out lines: on ``here``, or where the note says, as in ``on_the_new_machine=machine``.

        ``expected``: the exit status of commands, None where that may be any.
        """
        for line in lines:
            at = next((machine for note, machine in places.items() if note.replace("_", " ") in line.note), here)
            self._do(line, at, 1 if "tells what it would do" in line.note else expected)

    def _do(self, line: Line, at: Machine, expected: int | None) -> None:
        program, *words = line.words
        words = [self._here(word, at) for word in words]
        match program:
            case "manage.py" if words[:2] == ["raft", "node"]:
                at.start("shop-node")
            case "manage.py" if words[:2] == ["raft", "transfer"]:
                if at.leads():  # "only on the leader"
                    status, printed = at.run(*words)
                    assert status == 0 or not at.leads(), printed  # it may just have lost its office
            case "manage.py" if words[:2] == ["raft", "status"] and "until" in line.note:
                probe = self._probe(line, at)
                wait_until(f"{at}: {line.note}", lambda: probe() and at.run(*words)[0] == 0, PATIENCE, every=0.2)
            case "manage.py" if expected == 0 and words[:2] in (["raft", "status"], ["raft", "verify"]):
                # The leader, or a member, may be out of reach for a moment.
                wait_until(f"{at}: {shlex.join(words)}", lambda: at.run(*words)[0] == 0, PATIENCE, every=0.2)
            case "manage.py":
                answers = ["--yes"] if tuple(words[:2]) in ANSWERED else []
                at.manage(*words, *answers, expected=expected)
            case "systemctl":
                verb, *services = words
                assert verb in {"start", "stop", "restart"} and set(services) <= SERVICES, line
                for service in reversed(services) if verb == "restart" else services:
                    if verb != "start":
                        at.stop(service)
                for service in services:
                    if verb != "stop":
                        at.start(service)
            case "pip":
                assert words[:2] == ["install", "--upgrade"]
                assert not at.running
                at.starter = self.upgraded
            case "cp" | "rm":
                subprocess.run([program, *words], check=True)
            case _:
                raise AssertionError(f"nobody here knows {shlex.join(line.words)}")

    def _here(self, word: str, at: Machine) -> str:
        """What stands on the page, as it is here."""
        word = word.replace("/var/lib/shop", str(at.folder))
        for written in sorted(self.stands_for, key=len, reverse=True):
            if word == written or word.startswith(f"{written}/"):
                return self.stands_for[written] + word.removeprefix(written)
        assert not re.match(r"10\.0\.|/srv/", word), f"what does {word} stand for?"
        return word

    def _probe(self, line: Line, at: Machine) -> Callable[[], bool]:
        """Whether the status is as the note says."""
        until = line.note.partition("until ")[2]
        sought = 0

        def lag_0() -> bool:
            nonlocal sought
            status = at.status()
            if not _sound(status):
                return False
            assert status is not None
            sought = sought or status["commit_index"]
            return bool(status["applied_index"] >= sought)

        def voter(written: str) -> bool:
            address = self.stands_for[written]
            members = (at.status() or {}).get("members", ())
            return any(each["address"] == address and each["role"] in VOTING for each in members)

        def three() -> bool:
            status = at.status()
            return _sound(status) and status is not None and len(status["members"]) == 3

        if until.startswith("lag 0"):
            return lag_0
        if until.startswith("there are three members and a leader"):
            return three
        if found := re.match(r"(\S+) is a voter", until):
            written = next(key for key in self.stands_for if key.partition(":")[0] == found[1] and ":" in key)
            return lambda: voter(written)
        raise AssertionError(f"nobody here knows when {until!r} is so")


def _sound(status: Mapping[str, Any] | None) -> bool:
    """A leader, and all members in reach, each with a vote."""
    if status is None or not status["leader"] or not status["leader_reachable"]:
        return False
    return all(each["reachable"] and each["role"] in VOTING for each in status["members"])


class Pause(NamedTuple):
    """Of a step: how many seconds it took, how many writes were acknowledged, the most seconds that passed in the
    whole group without one, and the most seconds that one of them took."""

    name: str
    seconds: float
    writes: int
    pause: float
    slowest: float


def pauses(steps: Sequence[Step], machines: Sequence[Machine]) -> list[Pause]:
    """What the writes had to wait in each step."""
    writes = [write for machine in machines for write in machine.written()]
    acknowledged = sorted((write.ended, write.began) for write in writes if write.ended is not None)
    told = []
    for step in steps:
        within = [(ended, began) for ended, began in acknowledged if step.began <= ended <= step.ended]
        before = [step.began] if acknowledged[0][0] < step.began else []
        moments = [*before, *(ended for ended, _ in within), step.ended]
        pause = max((later - former for former, later in pairwise(moments)), default=0.0)
        slowest = max((ended - began for ended, began in within), default=0.0)
        told.append(Pause(step.name, step.ended - step.began, len(within), pause, slowest))
    return told


def rows_in(path: Path) -> list[str]:
    """What the web servers wrote that is in a file, which is sound."""
    dump, sound = inspect_file(path)
    assert sound == "ok", (path, sound)
    return re.findall(r"^INSERT INTO \S*ledger_event\S* VALUES\(\d+,'([\d. ]+)'", dump, re.MULTILINE)


def shutdown(machines: Sequence[Machine]) -> None:
    """All end, whatever they do."""
    for machine in machines:
        machine.kill()
