"""What keeps the Raft log short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..raft.config import RaftView
from ..raft.driver import RaftDriver
from .api import NodeConfig
from .applier import Applier
from .compaction import Compaction
from .messages import Message
from .worker import Worker


class Upkeep:
    """The node's compaction, and the thread that waits for the disk in its stead.

    Loop thread, but for :meth:`start` and :meth:`close`.
    """

    def __init__(
        self,
        config: NodeConfig,
        driver: RaftDriver,
        applier: Applier,
        *,
        peers: Callable[[], Mapping[str, Message]],
        failed: Callable[[str], None],
    ) -> None:
        """``peers`` gives what each reachable member said of itself lately."""
        self._driver = driver
        self._peers = peers
        self._worker = Worker(f"raftsqlite-upkeep {config.name.name}", driver.call)
        self._compaction = Compaction(
            driver,
            entries=config.log_entries,
            size=config.log_bytes,
            run=self._worker.run,
            on_disk=applier.sync,
            held=self._held,
            failed=failed,
        )

    def start(self) -> None:
        """Start the thread."""
        self._worker.start()

    def close(self) -> None:
        """End the thread. Not on the loop's."""
        self._worker.close()

    def tick(self, view: RaftView) -> None:
        """Time passes; to be called every 50 ms or so."""
        self._compaction.tick(view)

    def _held(self) -> list[int]:
        """Where the other members are."""
        return [told["applied"] for told in self._peers().values() if told.get("failed") is None]

    def status(self, view: RaftView) -> dict[str, Any]:
        """What the node's status says of it."""
        return {
            "log": {
                "first_index": view.first_index,
                "entries": max(view.last_index - view.first_index + 1, 0),
                "bytes": self._driver.log_bytes,
            }
        }
