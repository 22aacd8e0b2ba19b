"""Signals of this backend.

Each is sent with the class DatabaseWrapper as ``sender``, the alias as ``using``, and addresses ("host:port") where
nodes and members are named: by the process that hosts the node, in a thread of its own, one after the other. So a
receiver that is slow, or hangs, or raises (which is logged) keeps no write and no other node waiting, only the
signals after it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from django.db import connections
from django.dispatch import Signal

from .backups.manifest import Manifest
from .node.events import LeaderChanged, MemberChanged, NodeReady
from .node.suspicion import Difference

divergence_detected = Signal()
"""Sent when a node's content is found to differ from what the group decided.

Arguments: ``node`` (the node that says so), ``member`` (the one that differs), ``suspect`` (bool: whether ``member``
stops serving; else nobody can tell which of ``node`` and ``member`` is wrong, and both go on), ``reason`` (str),
``index`` (the log index at which it was found, or None where it was not by comparison). A suspect node's own database
can be neither read nor written by a receiver.
"""

leader_changed = Signal()
"""Sent by each node when it learns of another leader than the one before, also of the first one after its start.

Arguments: ``node`` (the node that says so), ``leader``, ``previous`` (None for the first one), ``term`` (int).
"""

node_ready = Signal()
"""Sent once after a process began to host a node, when that has applied all that was committed at that moment.

Arguments: ``node``, ``leader``, ``index`` (the log index up to which it had to apply).
"""

member_changed = Signal()
"""Sent by each node when it learns that a change of the group's members is committed.

Arguments: ``node`` (the node that says so), ``member``, ``change`` ("added", "promoted" to a voter, "learner": a
voter no longer, "readmitted": a voter that lost its disk, as a newcomer; or "removed"), ``index`` (the log index of
the change).
"""

SIGNALS: dict[type, Signal] = {
    Difference: divergence_detected,
    LeaderChanged: leader_changed,
    NodeReady: node_ready,
    MemberChanged: member_changed,
}
"""Which signal tells of which event of a node; its arguments are the event's fields."""


@dataclass(frozen=True)
class Sender:
    """Sends the signals for an alias."""

    using: str

    def __call__(self, event: object) -> None:
        from .base import DatabaseWrapper  # noqa: PLC0415 - which reads the settings that this is made from

        signal = SIGNALS.get(type(event))
        if signal is None or not signal.has_listeners(DatabaseWrapper):
            return
        try:
            signal.send_robust(DatabaseWrapper, using=self.using, **asdict(event))  # type: ignore[call-overload]
        finally:
            connections.close_all()


backup_finished = Signal()
"""Sent when `manage.py raft backup` has taken a backup, or has failed to, by the process that did.

``sender`` is the class DatabaseWrapper. Arguments: ``using`` (the alias), ``node`` (the address of the node),
``place`` (str: where to), ``manifest`` (a :class:`~.backups.manifest.Manifest`, or None where it failed), ``seconds``
(float), ``error`` (the exception, or None). What a receiver raises is logged, and changes nothing.
"""


def send_backup_finished(
    using: str, *, node: str, place: str, manifest: Manifest | None, seconds: float, error: Exception | None
) -> None:
    """Send the signal."""
    from .base import DatabaseWrapper  # noqa: PLC0415 - which reads the settings that this is made from

    backup_finished.send_robust(
        DatabaseWrapper, using=using, node=node, place=place, manifest=manifest, seconds=seconds, error=error
    )
