"""How a member goes on behind a snapshot that its state machine takes, and what it does until then."""

from __future__ import annotations

from collections.abc import Callable

from .consensus import Consensus
from .members import Members
from .reluctance import Reluctance


class Installation:
    """Whether the state machine's file may be relied on, and what may be handed over to it.

    ``halted``: what was handed over last may not have been applied, and nothing more is before a snapshot is
    installed. The member goes on storing, voting and acknowledging, but leaves leading to others. ``under_way``: a
    snapshot is being installed, and nothing is handed over meanwhile. ``go_on()`` is called when it may be again.
    """

    def __init__(
        self, raft: Consensus, reluctance: Reluctance, *, reluctant: bool, halted: bool, go_on: Callable[[], None]
    ) -> None:
        self._raft = raft
        self._reluctance = reluctance
        self._reluctant = reluctant
        self._go_on = go_on
        self.halted = halted
        self.under_way = False

    def halt(self) -> None:
        """The file is not to be relied on any more."""
        self.halted = True
        self._reluctance.reluctant = True

    @property
    def least(self) -> int:
        """The least index at which a snapshot is of use."""
        return self._raft.applied if self.halted else self._raft.applied + 1

    def begin(self, index: int, term: int, members: Members) -> bool:
        """The state machine is about to take the state after entry ``index`` of ``term``, as a member has sent it;
        ``members`` is the configuration that was in force there.

        False: it is before :attr:`least`, and must not be taken (audit R4). True: the log remembers it durably, and
        nothing is handed over before :meth:`done` or :meth:`failed`.
        """
        if self.under_way or not self._raft.begin_install(index, term, members, least=self.least):
            return False
        self._raft.log.sync()
        self.under_way = True
        return True

    def done(self, index: int, term: int) -> None:
        """That state is on the state machine's disk: what is handed over goes on behind it."""
        self._raft.installed(index, term)
        self.halted = False
        self._reluctance.reluctant = self._reluctant
        self.failed()

    def failed(self) -> None:
        """The state machine's file is as before: what is handed over goes on."""
        self.under_way = False
        self._go_on()
