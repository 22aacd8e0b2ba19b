"""What takes long on this node or on the leader, and so keeps others waiting."""

from __future__ import annotations

from collections.abc import Callable

from .applier import Applier
from .applying import Applying
from .core import Core


class Busy:
    """Tells of one long entry that is being applied, or one large transaction that is being sent. Any thread.

    ``last_index`` gives the last index of this node's log.
    """

    def __init__(self, applier: Applier, core: Core, *, last_index: Callable[[], int]) -> None:
        self._applier = applier
        self._core = core
        self._last_index = last_index

    def here(self) -> Applying | None:
        """What is going on on this node."""
        applying = self._applier.applying()
        if applying is None and (sending := self._core.leader.long_commit()) is not None:
            seconds, who = sending
            applying = Applying(self._last_index(), seconds, f"a large transaction of {who}")
        return applying

    def anywhere(self) -> Applying | None:
        """What a write of this node waits for: here, or on the leader."""
        here = self.here()
        if here is None and (told := self._core.told_by_leader("applying")) is not None:
            here = Applying(**told)
        return here
