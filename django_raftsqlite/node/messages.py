"""What the cores of the members say to each other, and through what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..raft.config import RaftView

Message = dict[str, Any]


class RaftPort(Protocol):
    """What the core needs of the consensus layer (the driver, or a simulation)."""

    @property
    def view(self) -> RaftView: ...

    @property
    def hears_a_quorum(self) -> bool:
        """Whether this member leads and has heard of a quorum so lately that no other can have been elected since."""

    def propose(self, payload: bytes) -> tuple[int, int] | None: ...

    def send(self, peer: str, message: Message) -> bool: ...

    def read_index(self, done: Callable[[int | None], None]) -> None: ...
