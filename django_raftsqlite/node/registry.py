"""The nodes of this process, one for each database file."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from pathlib import Path

from ..exceptions import HostLost, OperationalError
from . import socketpath
from .api import NodeConfig
from .attached import AttachedNode
from .process import ProcessNode

_mutex = threading.Lock()
_nodes: dict[Path, ProcessNode] = {}


def open_node(config: NodeConfig) -> ProcessNode:
    """This process's node for ``config.name``; two aliases with one file share it."""
    key = Path(os.path.realpath(config.name))
    with _mutex:
        node = _nodes.get(key)
        if node is None or node.closed:
            node = _nodes[key] = ProcessNode(config)
        return node


def attach_node(config: NodeConfig) -> AttachedNode | None:
    """The node as its host's guest, to look at it: None when no process hosts it. The caller closes it."""
    try:
        return AttachedNode(config, socketpath.connect(config.folder, config.timeout), visitor=True)
    except (OSError, HostLost):
        return None


def close_node(name: Path) -> None:
    """Close this process's node for that database file, if it has one."""
    with _mutex:
        node = _nodes.pop(Path(os.path.realpath(name)), None)
    if node is not None:
        node.close()


def close_nodes() -> None:
    """Close all nodes of this process."""
    with _mutex:
        nodes = list(_nodes.values())
        _nodes.clear()
    for node in nodes:
        with contextlib.suppress(OperationalError):
            node.close()


def _forget_in_child() -> None:
    """A forked child opens nodes of its own."""
    global _mutex  # noqa: PLW0603 - it may be held by a thread that does not exist here
    _mutex = threading.Lock()
    _nodes.clear()


atexit.register(close_nodes)
os.register_at_fork(after_in_child=_forget_in_child)
