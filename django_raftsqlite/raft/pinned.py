"""The pysyncobj that this package works with, and what stands in for those of its parts that are not used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from pysyncobj.version import VERSION

PINNED_VERSION = "0.3.17"
PINNED_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"


def check_library(version: str, source: bytes) -> None:
    """Raise ImportError unless this is exactly the pysyncobj whose private names and handler order we know."""
    digest = hashlib.sha256(source).hexdigest()
    if version != PINNED_VERSION or digest != PINNED_SHA256:
        raise ImportError(
            f"django-raftsqlite works with the unmodified pysyncobj {PINNED_VERSION} only, found version {version} "
            f"with syncobj.py of SHA-256 {digest}. Write: pip install --force-reinstall pysyncobj=={PINNED_VERSION}"
        )


check_library(VERSION, Path(library.__file__).read_bytes())


class Outlet(Transport):  # type: ignore[misc]
    """Where pysyncobj puts its messages. Always ready (audit R23): it has no socket that could fail to bind."""

    def __init__(self, send: Callable[[str, dict[str, Any]], bool]) -> None:
        super().__init__(None, None, None)
        self._send = send

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        return self._send(node.id, message)

    def addNode(self, node: Node) -> None:  # noqa: N802, RUF100 - pysyncobj's names
        pass

    def dropNode(self, node: Node) -> None:  # noqa: N802, RUF100
        pass

    def destroy(self) -> None:
        pass


class MemberNode(Node):  # type: ignore[misc]
    """One object per member, so that identity is equality: the tables of pysyncobj are asked many times per entry."""

    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__


class NoPoller:
    """pysyncobj polls its own sockets at the end of each tick; it has none."""

    def poll(self, timeout: float) -> None:
        """Nothing comes this way."""
