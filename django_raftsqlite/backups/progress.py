"""How far a backup or a restore is, for whoever looks on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Progress:
    """Says what is being done: a bar on a terminal (with tqdm, the extra "progress"), else one line each.

    ``write`` takes a line; None: nothing is said at all.
    """

    def __init__(self, write: Callable[[str], object] | None, stream: TextIO | None = None) -> None:
        self._write = write
        self._stream = stream or sys.stderr

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """A step over ``total`` bytes; what is yielded is told of more of them."""
        bar = self._bar(what, total)
        if bar is None:
            if self._write is not None:
                self._write(f"{what} ({total / 2**20:.1f} MiB)")
            yield lambda _: None
            return
        with bar:
            yield bar.update

    def say(self, text: str) -> None:
        """A line."""
        if self._write is not None:
            self._write(text)

    def _bar(self, what: str, total: int) -> Any:
        if self._write is None or not self._stream.isatty():
            return None
        try:
            from tqdm import tqdm  # noqa: PLC0415 - an extra
        except ImportError:
            return None
        return tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, file=self._stream)


SILENT = Progress(None)
