"""What stands for the web server of a machine in the runbook's test: writes rows all the time, and keeps a record.

``python -m tests.process.pen NAME RECORD``: before a write, ``? SECONDS TEXT`` is added to the record (seconds of
the monotonic clock, which all processes share), and ``+ SECONDS TEXT`` when it was acknowledged. SIGTERM ends it
after the write that is under way, or shortly after, in the middle of it.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import django

PACE = 0.1
GRACE = 2


class Ended(BaseException):
    """The time to end in peace is over."""


def main(name: str, record: str) -> None:
    """Write until SIGTERM."""
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        signal.alarm(GRACE)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Ended

    signal.signal(signal.SIGALRM, end)
    signal.signal(signal.SIGTERM, stop)
    django.setup()
    from django.db import Error
    from ledger.models import Event

    number = 0
    with Path(record).open("a", buffering=1) as file:
        try:
            while not stopping:
                number += 1
                text = f"{name} {number}"
                file.write(f"? {time.monotonic()} {text}\n")
                try:
                    Event.objects.create(text=text)
                except Error as error:
                    print(f"{text}: {type(error).__name__}: {error}", file=sys.stderr)
                else:
                    file.write(f"+ {time.monotonic()} {text}\n")
                time.sleep(PACE)
        except Ended:
            print(f"ended while {name} {number} was under way", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
