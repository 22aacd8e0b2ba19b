"""The node's Unix socket: where it is, also where its path is too long for a socket address."""

from __future__ import annotations

import os
import socket
import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOCKET_NAME = "socket"
MAX_SOCKET_PATH = 107  # sun_path has 108 bytes, one of them a NUL: unix(7)

_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


@contextmanager
def address(folder: Path) -> Iterator[str]:
    """A socket address for ``folder``; a long one is reached through a descriptor of the folder (Linux)."""
    path = str(folder / SOCKET_NAME)
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def listen(folder: Path, mode: int) -> socket.socket:
    """A listening socket in ``folder`` with exactly ``mode``; replaces the one of a host that died.

    Call it only with the folder's lock held.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(folder) as where:
            Path(where).unlink(missing_ok=True)
            # The mode of the socket file is the inode's before bind(2) makes it visible: no umask races.
            os.fchmod(listener.fileno(), mode)
            listener.bind(where)
            Path(where).chmod(mode)
            listener.listen(128)
        _sockets.add(listener)
    except BaseException:
        listener.close()
        raise
    return listener


def accept(listener: socket.socket) -> socket.socket:
    """The next connection. Raises OSError when the listener was shut down."""
    accepted, _ = listener.accept()
    _sockets.add(accepted)
    return accepted


def peer_pid(client: socket.socket) -> int | None:
    """The process that listened, also when it never answers (SO_PEERCRED, unix(7)); None where it cannot be told."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    try:
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    pid: int = struct.unpack("3i", credentials)[0]
    return pid or None


def connect(folder: Path, timeout: float) -> socket.socket:
    """Connect to the host of ``folder``. Raises OSError when nobody listens."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.settimeout(timeout)
        with address(folder) as where:
            client.connect(where)
        _sockets.add(client)
    except BaseException:
        client.close()
        raise
    return client


def _close_in_child() -> None:
    """While a forked child has them open, the other side would not notice that the parent has ended."""
    for sock in list(_sockets):
        sock.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_close_in_child)
