"""What keeps the Raft log short, and brings members back that lack what it no longer holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import apsw

from ..raft.config import RaftView
from ..raft.driver import RaftDriver
from ..sqlite.copying import Copied, copy_database, inspect_copy
from ..sqlite.errors import NodeFault
from .api import NodeConfig
from .applier import Applier
from .archive import Archiver
from .compaction import Compaction, CutWish, Hold
from .messages import Message
from .snapshot_source import SnapshotSource
from .snapshot_target import SnapshotTarget
from .worker import Stopped, Worker

logger = logging.getLogger("django_raftsqlite.node")

PREFIX = "node.snapshot_"
"""What the types of its messages begin with."""


class Upkeep:
    """The node's compaction, both ends of its snapshots, and the thread that waits for the disk in their stead.

    ``peers`` gives what each reachable member said of itself lately, ``handed`` the index up to which entries were
    handed to the state machine. ``installed`` is called when the file holds another node's state, with True where it
    was not to be relied on before; ``suspect`` tells whether it is not now: then nothing is cut for it nor copied
    from it; nothing that ``archiver`` has yet to archive is cut. ``distrust`` makes it so, with a reason: where its
    pages are of another size than the group's, it can only be replaced as a whole. ``least`` is the least index of a
    copy that may replace a suspect file.

    Loop thread, but for :meth:`start`, :meth:`stop` and :meth:`close`.
    """

    def __init__(
        self,
        config: NodeConfig,
        driver: RaftDriver,
        applier: Applier,
        *,
        peers: Callable[[], Mapping[str, Message]],
        installed: Callable[[bool], object],
        failed: Callable[[str], None],
        suspect: Callable[[], bool],
        distrust: Callable[[str], object],
        least: Callable[[], int],
        advance: Callable[[], object],
        archiver: Archiver | None = None,
    ) -> None:
        self._driver = driver
        self._applier = applier
        self._peers = peers
        self._on_installed = installed
        self._suspect = suspect
        self._archiver = archiver
        self._least = least
        self._broken = False
        self._worker = worker = Worker(f"raftsqlite-upkeep {config.name.name}", driver.call)
        self._compaction = Compaction(
            driver,
            entries=config.log_entries,
            size=config.log_bytes,
            run=worker.run,
            on_disk=applier.sync,
            held=self._held,
            failed=failed,
        )

        def make(path: Path, go_on: Callable[[], object]) -> Copied:
            resyncs = applier.resyncs
            copied = copy_database(config.name, path, config.mode, go_on)
            applier.confirm(go_on, resyncs=resyncs)
            return copied

        self._source = SnapshotSource(
            config.folder,
            rate=config.snapshot_rate,
            worker=worker,
            send=driver.send,
            make=make,
            applied=lambda: applier.applied.index,
            named=lambda: applier.state.at,
            advance=advance,
            members=driver.members_at,
        )
        self._target = SnapshotTarget(
            config.folder,
            mode=config.mode,
            layout=applier.layout,
            worker=worker,
            send=driver.send,
            applied=lambda: max(driver.installable_from, least()) - 1,
            install=self._install,
            any_layout=lambda: driver.halted,
            mismatched=distrust,
        )

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def stop(self) -> None:
        """End the thread, while the loop still runs: what it has opened is told. Not on the loop's thread."""
        self._worker.close()

    def close(self) -> None:
        """Close all files, when the loop has ended."""
        self._source.close()
        self._target.close()

    def tick(self) -> None:
        """Time passes; to be called every 50 ms or so. Never raises: consensus goes on without it."""
        if self._broken:
            return
        try:
            self._tick()
        except Exception:
            self._broken = True
            logger.exception("the Raft log is not kept short any more, and no copies of the database are sent")

    def _tick(self) -> None:
        view, told = self._driver.view, self._peers()
        if not self._suspect():
            self._compaction.tick(view)
            self._source.tick(view, told)
        else:
            self._source.drop()
        self._target.tick(view)

    def on_message(self, peer: str, message: Message) -> None:
        """A message whose type begins with PREFIX. Raises KeyError, TypeError or ValueError for a malformed one."""
        match message["type"].removeprefix(PREFIX):
            case "offer":
                self._target.on_offer(peer, message, self._driver.view)
            case "want":
                self._source.on_want(peer, message)
            case "part":
                self._target.on_part(peer, message)
            case "gone":
                self._target.on_gone(peer, message)
            case kind:
                raise ValueError(f"no such message: {kind!r:.40}")

    def cut(self, wish: CutWish) -> None:
        """See :meth:`Compaction.cut`."""
        self._compaction.cut(wish)

    @property
    def receiving(self) -> dict[str, Any] | None:
        """The snapshot that is on its way to this node."""
        return self._target.status()

    def status(self, view: RaftView) -> dict[str, Any]:
        """What the node's status says of it."""
        ago = self._compaction.synced_ago
        return {
            "log": {
                "first_index": view.first_index,
                "entries": max(view.last_index - view.first_index + 1, 0),
                "bytes": self._driver.log_bytes,
                "synced_index": self._compaction.synced,
                "synced_ago": None if ago is None else round(ago, 3),
            },
            "snapshots": {
                "behind": sorted(view.behind),
                "sending": self._source.status(),
                "receiving": self._target.status(),
                "sent_bytes": self._source.sent_bytes,
                "received_bytes": self._target.received_bytes,
                "problem": self._source.problem or self._target.problem,
            },
        }

    def _held(self) -> list[Hold]:
        """What others will ask for: what follows where they are, or the copy that they are taking."""
        held = [self._source.needed] if self._source.needed is not None else []
        if self._archiver is not None:
            held.append(self._archiver.hold(self._driver.view))
        for told in self._peers().values():
            receiving = told.get("receiving")
            if receiving is not None:
                held.append(Hold(int(receiving["index"]), int(receiving["size"])))
            elif told.get("failed") is None and told.get("suspect") is None:
                held.append(Hold(int(told["applied"])))
        return held

    def _install(
        self, copy: Path, index: int, term: int, members: bytes, done: Callable[[Exception | None], None]
    ) -> None:
        resync = self._driver.halted
        try:
            found = inspect_copy(copy)
        except apsw.Error as error:
            done(error)
            return
        if (found.index, found.term) != (index, term):
            done(NodeFault(f"it is of log index {found.index}, term {found.term}, not of {index}, term {term}"))
            return
        if index < self._least() or not self._driver.begin_install(index, term, members):
            done(Stopped())
            return

        def finished(error: Exception | None) -> None:
            if error is None:
                self._driver.installed(index, term)
                self._target.layout = self._applier.layout
                self._on_installed(resync)
            else:
                self._driver.install_failed()
            done(error)

        self._applier.install(copy, index, lambda error: self._driver.call(finished, error), resync=resync)
