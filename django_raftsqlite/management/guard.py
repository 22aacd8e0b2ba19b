"""``python guard.py manage.py runserver ...``: run a Python program that does not outlive its parent.

The parent holds the other end of standard input and never writes to it. When the parent ends, however it ends,
the kernel closes the pipe; the program is then interrupted, and after :data:`GRACE` seconds ended. This works
on every POSIX system, and lets a node stop cleanly, as ``PR_SET_PDEATHSIG`` with SIGKILL would not.

Run as a file, so that it costs no imports of this package.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from types import FrameType

GRACE = 5.0


def main(arguments: list[str]) -> None:
    """Run ``script.py ...`` or ``-m module ...`` as ``__main__``, with its own ``sys.argv`` and ``sys.path[0]``."""
    # A shell that started the parent in the background had SIGINT ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_watch_parent, name="guard", daemon=True).start()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = str(os.getcwd())  # noqa: PTH109 - no pathlib here: this is every node's start-up time
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))  # noqa: PTH100, PTH120
        runpy.run_path(arguments[0], run_name="__main__")


def _exit(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def _watch_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
