"""Signals of this backend."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connections
from django.dispatch import Signal

from .backups.manifest import Manifest
from .node.suspicion import Difference

divergence_detected = Signal()
"""Sent when a node's content is found to differ from what the group decided, by the process that hosts the node.

``sender`` is the class DatabaseWrapper. Arguments: ``using`` (the alias), ``node`` (the address of the node that
says so), ``member`` (the address of the one that differs), ``suspect`` (bool: whether ``member`` stops serving; else
nobody can tell which of ``node`` and ``member`` is wrong, and both go on), ``reason`` (str), ``index`` (the log
index at which it was found, or None where it was not by comparison). Sent in a thread of its own; what a receiver
raises is logged. A suspect node's own database can be neither read nor written by a receiver.
"""


@dataclass(frozen=True)
class Sender:
    """Sends the signal for an alias."""

    using: str

    def __call__(self, difference: Difference) -> None:
        from .base import DatabaseWrapper  # noqa: PLC0415 - which reads the settings that this is made from

        try:
            divergence_detected.send_robust(
                DatabaseWrapper,
                using=self.using,
                node=difference.node,
                member=difference.member,
                suspect=difference.suspect,
                reason=difference.reason,
                index=difference.index,
            )
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
