"""Small files of text in the node's folder."""

from __future__ import annotations

import os
from pathlib import Path


def put(path: Path, text: str, *, durable: bool) -> None:
    """Put a file into a node's folder, or in the place of the one there: all of it, or nothing. Raises OSError.

    It may be read and written by whoever may enter the folder, whatever the umask: the next process to host the node
    may be another user's. ``durable``: its content is on the disk before it has its name; its name is the caller's
    matter.
    """
    mode = path.parent.stat().st_mode & 0o666
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)  # of another user, it could not be given a mode
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        file.write(text)
        if durable:
            file.flush()
            os.fsync(descriptor)
    draft.replace(path)
