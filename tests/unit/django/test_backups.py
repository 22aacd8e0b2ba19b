"""Backups: a copy with a manifest, or nothing that looks like one; and the way back."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytest
from django.core.files.storage import FileSystemStorage
from django.core.management.base import BaseCommand, CommandError
from hypothesis import given
from hypothesis import strategies as st

from django_raftsqlite.backups import keeping, restoring, taking
from django_raftsqlite.backups.keeping import NoBackup, choose, find_backups, prune
from django_raftsqlite.backups.manifest import Manifest, ManifestError, decode_manifest
from django_raftsqlite.backups.places import Folder, Place, PlaceError, StoragePlace, check_kept
from django_raftsqlite.backups.progress import Progress
from django_raftsqlite.backups.taking import BackupFailed, last_backup, take_backup
from django_raftsqlite.management.backup_verbs import BackupVerbs, add_verbs
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.registry import close_node, open_node
from django_raftsqlite.signals import backup_finished
from tests.support.nodes import read, write

MANIFEST = Manifest(
    file="default-20261120T140300Z-7-aaaa.sqlite3",
    alias="default",
    time="2026-11-20T14:03:00+00:00",
    index=7,
    term=1,
    lineage="00" * 16,
    version=3,
    digest="11" * 32,
    archive=None,
    size=4,
    sha256="88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589",  # of b"abcd"
    database_size=4,
    database_sha256="88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589",
    compression=None,
    node="localhost",
    package="0",
    sqlite="3",
)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[NodeConfig]:
    (tmp_path / "node").mkdir()
    config = NodeConfig(
        name=tmp_path / "node" / "db.sqlite3", address="localhost", peers=("localhost",), durable=False
    )
    yield config
    close_node(config.name)


@pytest.fixture
def node(config: NodeConfig) -> ProcessNode:
    node = open_node(config)
    write(node, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    for number in range(10):
        write(node, "INSERT INTO t (x) VALUES (?)", number)
    return node


@pytest.fixture(params=["folder", "storage"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where to, and where a test looks at it."""
    if request.param == "folder":
        return Folder(tmp_path / "kept")
    return StoragePlace(FileSystemStorage(tmp_path), "kept", "a storage")


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []

    def receiver(sender: type, **arguments: Any) -> None:
        heard.append(arguments)

    backup_finished.connect(receiver)
    yield heard
    backup_finished.disconnect(receiver)


def keep(place: Place, manifest: Manifest, data: bytes = b"abcd") -> Manifest:
    """Put a backup into a place."""
    place.write(manifest.file, io.BytesIO(data), lambda _: None)
    place.write(f"{manifest.file}.json", io.BytesIO(manifest.encode()), lambda _: None)
    return manifest


def named(moment: str, alias: str = "default") -> Manifest:
    stamp = datetime.fromisoformat(moment)
    return replace(
        MANIFEST, alias=alias, file=f"{alias}-{stamp:%Y%m%dT%H%M%SZ}-7-aaaa.sqlite3", time=stamp.isoformat()
    )


class TestTaking:
    @pytest.mark.parametrize("compress", [False, True])
    def test_a_backup_is_a_plain_sqlite_file_with_a_manifest(
        self, node: ProcessNode, config: NodeConfig, place: Place, tmp_path: Path, compress: bool
    ) -> None:
        """Any program can open it, where it cannot write, too."""
        manifest = take_backup("default", config, place, compress=compress)
        assert place.names() == sorted([manifest.file, f"{manifest.file}.json"])
        data = (tmp_path / "kept" / manifest.file).read_bytes()
        assert len(data) == manifest.size
        plain = tmp_path / "plain"
        plain.write_bytes(gzip.decompress(data) if compress else data)
        plain.chmod(0o400)
        with contextlib.closing(sqlite3.connect(f"file:{plain}?mode=ro", uri=True)) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchall() == [(10,)]
            assert connection.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
        status = node.status()
        assert (manifest.index, manifest.version) == (status["applied_index"], status["version"])
        assert (manifest.digest, manifest.lineage) == (status["digest"], status["lineage"])
        assert list(config.folder.glob("backup-*")) == []
        kept = last_backup(config)
        assert kept is not None
        assert (kept["index"], kept["place"]) == (manifest.index, str(place))

    def test_the_signal_tells_of_it(
        self, node: ProcessNode, config: NodeConfig, place: Place, told: list[dict[str, Any]]
    ) -> None:
        """Also of a failure, with the reason."""
        manifest = take_backup("default", config, place, name="one")
        with pytest.raises(BackupFailed, match="one exists already"):
            take_backup("default", config, place, name="one")
        first, second = told
        assert (first["using"], first["manifest"], first["error"]) == ("default", manifest, None)
        assert second["manifest"] is None
        assert "exists already" in str(second["error"])
        assert len(find_backups(place)) == 1

    def test_a_receiver_that_fails_changes_nothing(self, node: ProcessNode, config: NodeConfig, place: Place) -> None:
        """It is the application's."""

        def fails(**_: Any) -> None:
            raise RuntimeError

        backup_finished.connect(fails)
        try:
            take_backup("default", config, place)
        finally:
            backup_finished.disconnect(fails)

    def test_what_cannot_be_read_again_as_it_was_written_is_no_backup(
        self, node: ProcessNode, config: NodeConfig, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The manifest comes last, and data that was damaged on its way does not stay."""
        wrote = type(place).write

        def damage(self: Any, name: str, source: IO[bytes], told: Callable[[int], object]) -> None:
            wrote(self, name, source, told)
            path = tmp_path / "kept" / name
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"?")

        monkeypatch.setattr(type(place), "write", damage)
        with pytest.raises(BackupFailed, match="is not what was written"):
            take_backup("default", config, place)
        assert place.names() == []

    def test_a_damaged_database_gives_no_backup(
        self, node: ProcessNode, config: NodeConfig, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would be found when it is needed."""
        copied = taking.copy_database

        def damage(source: Path, target: Path, mode: int, go_on: Callable[[], object]) -> Any:
            result = copied(source, target, mode, go_on)
            data = bytearray(target.read_bytes())
            data[4096:] = bytes(len(data) - 4096)
            target.write_bytes(bytes(data))
            return result

        monkeypatch.setattr(taking, "copy_database", damage)
        with pytest.raises(BackupFailed, match=r"damaged|malformed"):
            take_backup("default", config, place)
        assert place.names() == []

    def test_a_suspect_node_gives_no_backup(self, node: ProcessNode, config: NodeConfig, place: Place) -> None:
        """Its file is not to be relied on."""
        taking.Mark(config.folder).set("it differs")
        with pytest.raises(BackupFailed, match="it differs"):
            take_backup("default", config, place)
        taking.Mark(config.folder).set(None)

    def test_what_a_killed_backup_left_goes_with_a_later_one(
        self, node: ProcessNode, config: NodeConfig, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A day later: it may still be at work."""
        left = config.folder / "backup-left"
        left.mkdir()
        take_backup("default", config, place)
        assert left.exists()
        monkeypatch.setattr(taking, "SCRATCH_SECONDS", -1.0)
        take_backup("default", config, place)
        assert not left.exists()


class TestPlaces:
    def test_a_half_written_file_is_not_there(self, tmp_path: Path) -> None:
        """In a folder of this machine; whatever ends the process."""

        class Breaks(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                raise KeyboardInterrupt

        place = Folder(tmp_path / "kept")
        with pytest.raises(KeyboardInterrupt):
            place.write("a", Breaks(), lambda _: None)
        assert place.names() == []
        assert list((tmp_path / "kept").iterdir()) == []

    def test_what_a_killed_process_left_of_a_file_goes_a_day_later(self, tmp_path: Path) -> None:
        """And nothing else does."""
        old, new, other = (tmp_path / name for name in (".a.sqlite3.12.part", ".b.sqlite3.34.part", ".x.part"))
        for path in (old, new, other):
            path.write_bytes(b"x")
        for path in (old, other):
            os.utime(path, (0, 0))
        Folder(tmp_path).write("a", io.BytesIO(b"x"), lambda _: None)
        assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, other.name, "a"]

    def test_files_have_the_mode_that_was_asked_for(self, tmp_path: Path) -> None:
        """Whatever the umask."""
        Folder(tmp_path, 0o640).write("a", io.BytesIO(b"x"), lambda _: None)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640

    def test_a_name_that_is_taken_is_not_written_over(self, place: Place) -> None:
        """Nor is another one used, as storages like to."""
        place.write("f/a", io.BytesIO(b"first"), lambda _: None)
        with pytest.raises(PlaceError, match="exists already"):
            place.write("f/a", io.BytesIO(b"second"), lambda _: None)
        assert place.names("f") == ["a"]
        with contextlib.closing(place.open("f/a")) as file:
            assert file.read() == b"first"

    def test_a_storage_that_gives_another_name_is_told_so(self, tmp_path: Path) -> None:
        """Two that write the same name at the same time."""

        class Busy(FileSystemStorage):
            def get_available_name(self, name: str, max_length: int | None = None) -> str:
                return f"{name}_x"

        place = StoragePlace(Busy(tmp_path), "p", "a storage")
        with pytest.raises(PlaceError, match="another name"):
            place.write("a", io.BytesIO(b"second"), lambda _: None)
        assert place.names() == []

    def test_any_exception_of_a_storage_is_told_with_where_it_was(self) -> None:
        """Clients of object stores raise their own."""

        class Broken(FileSystemStorage):
            def listdir(self, path: str) -> Any:
                raise ZeroDivisionError

        with pytest.raises(PlaceError, match=r"p/f in S3 cannot be listed: ZeroDivisionError"):
            StoragePlace(Broken(), "p", "S3").names("f")

    def test_what_is_not_there_is_nothing_to_list_and_harmless_to_remove(self, place: Place) -> None:
        """A first backup, and a pruning that is repeated."""
        assert place.names("nowhere") == []
        place.delete("nowhere")
        with pytest.raises(PlaceError):
            place.open("nowhere")

    def test_a_file_that_changed_is_found(self, place: Place) -> None:
        """Also one of the same size."""
        place.write("a", io.BytesIO(b"abcd"), lambda _: None)
        check_kept(place, "a", MANIFEST.sha256, 4)
        for sha256, size in ((MANIFEST.sha256, 5), ("0" * 64, 4)):
            with pytest.raises(PlaceError, match="is not what was written"):
                check_kept(place, "a", sha256, size)


class TestManifests:
    def test_what_was_encoded_is_decoded(self) -> None:
        assert decode_manifest(MANIFEST.encode()) == MANIFEST

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"file": "../etc/passwd"},
            {"file": ".hidden"},
            {"index": "7"},
            {"index": True},
            {"size": -1},
            {"time": "yesterday"},
            {"time": "2026-11-20T14:03:00"},
            {"compression": "zip"},
            {"sha256": None},
        ],
        ids=str,
    )
    def test_what_is_not_as_it_must_be_is_refused(self, change: dict[str, Any]) -> None:
        """It may have come from anywhere."""
        with pytest.raises(ManifestError):
            decode_manifest(json.dumps({**json.loads(MANIFEST.encode()), **change}).encode())

    @given(
        st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
    )
    def test_no_bytes_make_it_fail_otherwise(self, data: bytes) -> None:
        with pytest.raises(ManifestError):
            decode_manifest(data)

    def test_deep_nesting_is_refused(self) -> None:
        with pytest.raises(ManifestError):
            decode_manifest(b"[" * 60_000)


class TestKeeping:
    def test_backups_are_listed_by_their_time_and_what_is_none_behind_them(self, place: Place) -> None:
        """With the reason."""
        later, earlier = (
            keep(place, named("2026-11-20T14:03:00+00:00")),
            keep(place, named("2026-11-19T00:00:00+00:00")),
        )
        place.write("half.sqlite3", io.BytesIO(b"x"), lambda _: None)
        place.write("bad.sqlite3", io.BytesIO(b"x"), lambda _: None)
        place.write("bad.sqlite3.json", io.BytesIO(b"{"), lambda _: None)
        place.write("gone.sqlite3.json", io.BytesIO(replace(MANIFEST, file="gone.sqlite3").encode()), lambda _: None)
        place.write("unrelated.json", io.BytesIO(b"{}"), lambda _: None)
        found = find_backups(place)
        assert [each.manifest for each in found[:2]] == [earlier, later]
        assert [(each.name, each.manifest) for each in found[2:]] == [
            ("bad.sqlite3", None),
            ("gone.sqlite3", None),
            ("half.sqlite3", None),
        ]
        assert ["no JSON" in str(found[2].problem), found[3].problem] == [True, "its data is gone"]
        assert choose(found, place, None) == later
        assert choose(found, place, earlier.file) == earlier
        with pytest.raises(NoBackup, match="no manifest"):
            choose(found, place, "half.sqlite3")
        with pytest.raises(NoBackup, match="there is no backup x"):
            choose(found, place, "x")

    def test_pruning_keeps_the_newest_of_this_database_and_all_of_others(self, place: Place) -> None:
        """What was left unfinished goes after a day; what has another's name stays."""
        now = datetime(2026, 11, 21, tzinfo=UTC)
        days = [keep(place, named(f"2026-11-{day}T00:00:00+00:00")) for day in (17, 18, 19, 20)]
        other = keep(place, named("2026-11-01T00:00:00+00:00", "other"))
        for name in (
            "default-20261119T235959Z-9-bbbb.sqlite3",
            "default-20261120T000001Z-9-bbbb.sqlite3",
            "x.sqlite3",
        ):
            place.write(name, io.BytesIO(b"x"), lambda _: None)
        gone = prune(place, "default", 2, now)
        assert gone == [days[0].file, days[1].file, "default-20261119T235959Z-9-bbbb.sqlite3"]
        found = find_backups(place)
        assert [each.manifest for each in found if each.manifest] == [other, *days[2:]]
        assert [each.name for each in found if not each.manifest] == [
            "default-20261120T000001Z-9-bbbb.sqlite3",
            "x.sqlite3",
        ]

    def test_a_pruning_that_is_killed_leaves_no_manifest_without_data(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is half removed must not look whole."""
        keep(place, named("2026-11-19T00:00:00+00:00"))
        kept = keep(place, named("2026-11-20T00:00:00+00:00"))
        removed = type(place).delete
        names: list[str] = []

        def once(self: Any, name: str) -> None:
            if names:
                raise KeyboardInterrupt
            names.append(name)
            removed(self, name)

        with monkeypatch.context() as patch:
            patch.setattr(type(place), "delete", once)
            with pytest.raises(KeyboardInterrupt):
                prune(place, "default", 1)
        assert [each.manifest for each in find_backups(place)] == [kept, None]

    @pytest.mark.parametrize(
        ("change", "data", "text"),
        [
            ({}, b"abce", "damaged"),
            ({"size": 3}, b"abcd", "damaged"),
            ({"database_size": 3}, b"abcd", "more than its manifest says"),
            ({"database_size": 5}, b"abcd", "does not hold"),
            ({"database_sha256": "0" * 64}, b"abcd", "does not hold"),
            ({"compression": "gzip"}, b"abcd", "cannot be unpacked"),
        ],
    )
    def test_what_is_fetched_is_checked(
        self, place: Place, tmp_path: Path, change: dict[str, Any], data: bytes, text: str
    ) -> None:
        """As it is kept, and what is in it."""
        manifest = keep(place, replace(MANIFEST, **change), data)
        with pytest.raises(NoBackup, match=text):
            keeping.fetch(place, manifest, tmp_path / "fetched")


class Console(BaseCommand):
    def __init__(self) -> None:
        super().__init__(stdout=io.StringIO(), no_color=True)

    @property
    def text(self) -> str:
        return str(self.stdout._out.getvalue())


def command(config: NodeConfig, *arguments: str) -> str:
    """Run a sub-command; what it printed."""
    parser = argparse.ArgumentParser()
    add_verbs(parser.add_subparsers(dest="verb"))
    options = vars(parser.parse_args(arguments))
    console = Console()
    BackupVerbs(console, "default", config, options).run(options["verb"])
    return console.text


def test_an_interrupted_command_says_where_to_look(
    node: ProcessNode, config: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing that looks like a backup."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(taking, "check_kept", interrupt)
    with pytest.raises(CommandError, match="interrupted") as caught:
        command(config, "backup", str(tmp_path / "one"))
    assert caught.value.returncode == 130
    assert not list(tmp_path.glob("one*"))


class TestCommands:
    def test_a_backup_is_listed_and_restored(self, node: ProcessNode, config: NodeConfig, tmp_path: Path) -> None:
        """What was written since is gone; --yes is for scripts."""
        kept = tmp_path / "kept"
        kept.mkdir()
        assert "log index" in command(config, "backup", str(kept), "--compress")
        (name,) = (path.name for path in kept.glob("*.gz"))
        assert name in command(config, "backups", str(kept))
        (listed,) = json.loads(command(config, "backups", str(kept), "--format", "json"))
        assert listed["manifest"]["file"] == name
        write(node, "DELETE FROM t")
        with pytest.raises(CommandError, match="say --yes"):
            command(config, "restore", str(kept))
        assert read(node, "SELECT count(*) FROM t") == [(0,)]
        assert "on all members" in command(config, "restore", str(kept / name), "--yes")
        assert read(node, "SELECT count(*) FROM t") == [(10,)]
        assert list(config.folder.glob("backup-*")) == []

    def test_what_a_member_has_no_room_for_is_refused_before_anything_is_sent(
        self, node: ProcessNode, config: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All of them would stop at the same entry."""
        command(config, "backup", str(tmp_path / "one"))
        monkeypatch.setattr(restoring, "SPACE", 10**9)
        before = node.status()["last_index"]
        with pytest.raises(CommandError, match=r"nothing was changed: localhost has .* MiB free"):
            command(config, "restore", str(tmp_path / "one"), "--yes")
        assert node.status()["last_index"] == before

    @pytest.mark.parametrize("answer", ["db.sqlite3", "yes"])
    def test_on_a_terminal_the_name_of_the_database_is_to_be_typed(
        self, node: ProcessNode, config: NodeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
    ) -> None:
        """Anything else changes nothing."""
        command(config, "backup", str(tmp_path / "one"))
        write(node, "DELETE FROM t")
        asked: list[str] = []

        def type_(prompt: str) -> str:
            asked.append(prompt)
            return answer

        monkeypatch.setattr("builtins.input", type_)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        if answer == "yes":
            with pytest.raises(CommandError, match="nothing was changed"):
                command(config, "restore", str(tmp_path / "one"))
        else:
            command(config, "restore", str(tmp_path / "one"))
        assert "on all members" in asked[0]
        assert read(node, "SELECT count(*) FROM t") == [(10 if answer == "db.sqlite3" else 0,)]

    def test_keep_removes_the_oldest_after_a_new_one(
        self, node: ProcessNode, config: NodeConfig, tmp_path: Path
    ) -> None:
        """There are never fewer than that."""
        for day in (1, 2, 3):
            keep(Folder(tmp_path), named(f"2020-01-0{day}T00:00:00+00:00"))
        text = command(config, "backup", str(tmp_path), "--keep", "2")
        assert text.count("removed") == 2
        left = [each.manifest.time for each in find_backups(Folder(tmp_path)) if each.manifest]
        assert (len(left), left[0][:10]) == (2, "2020-01-03")

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["backup"], "write where to"),
            (["backup", "x", "--storage", "default"], "not both"),
            (["backup", "/nowhere/x"], "there is no folder /nowhere"),
            (["backups", "/nowhere"], "there is no folder /nowhere"),
            (["backup", "--storage", "nowhere"], "nowhere"),
            (["restore"], "write what to restore"),
            (["restore", "/nowhere/x"], "no backup x"),
            (["load", "/nowhere/x"], "there is no file"),
        ],
    )
    def test_what_cannot_be_done_is_told(self, config: NodeConfig, arguments: list[str], text: str) -> None:
        with pytest.raises(CommandError, match=text):
            command(config, *arguments)

    def test_load_takes_any_sqlite_file_and_asks_only_where_something_would_be_lost(
        self, config: NodeConfig, tmp_path: Path
    ) -> None:
        """The file stays as it is."""
        path = tmp_path / "old.sqlite3"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("CREATE TABLE t (x)")
            connection.execute("INSERT INTO t VALUES ('in the -wal')")
            connection.commit()
            assert "holds the content" in command(config, "load", str(path))
        assert read(open_node(config), "SELECT x FROM t") == [("in the -wal",)]
        with pytest.raises(CommandError, match="say --yes"):
            command(config, "load", str(path))
        with pytest.raises(CommandError, match="of this node itself"):
            command(config, "load", str(config.name))


def test_the_progress_of_a_backup_is_a_line_for_each_step(
    node: ProcessNode, config: NodeConfig, tmp_path: Path
) -> None:
    """Where there is no terminal."""
    lines: list[str] = []
    take_backup("default", config, Folder(tmp_path / "kept"), progress=Progress(lines.append, io.StringIO()))
    assert [line.split()[0] for line in lines] == ["copying", "checking", "writing", "reading"]


def test_the_progress_on_a_terminal_is_a_bar(node: ProcessNode, config: NodeConfig, tmp_path: Path) -> None:
    """It ends at 100 %."""
    pytest.importorskip("tqdm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with restoring.from_file(config, config_copy(config, tmp_path), Progress(lambda _: None, terminal)) as ready:
        ready.restore()
    assert "sending it to the group: 100%" in terminal.getvalue()


def config_copy(config: NodeConfig, tmp_path: Path) -> Path:
    manifest = take_backup("default", config, Folder(tmp_path / "kept"))
    return tmp_path / "kept" / manifest.file


def test_unfinished_backups_are_given_a_day(place: Place) -> None:
    assert timedelta(hours=24) == keeping.UNFINISHED_KEPT
