"""Notices changed files of a project, as runserver's autoreloader does, without ending the process."""

from __future__ import annotations

import sysconfig
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.apps import apps
from django.urls import get_resolver
from django.utils.autoreload import StatReloader, autoreload_started

SETTLE = 0.3


class FileWatch(StatReloader):
    """Calls ``changed(path)`` after files of the project changed; several at once count as one.

    What is watched: every imported module, the ``.py`` files of the project's own applications (also those that
    nobody imported yet), and what receivers of ``autoreload_started`` add, such as templates and translations.
    """

    SLEEP_TIME = 0  # the pause is in _run(), where stop() ends it
    INTERVAL = 1.0

    def __init__(self, changed: Callable[[Path], None]) -> None:
        super().__init__()
        self._changed = changed
        self._noticed: Path | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file watch", daemon=True)

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        # Views are imported by the first request, which this process never gets; a broken one is not its business.
        with suppress(Exception):
            _ = get_resolver().urlconf_module
        libraries = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")]
        for application in apps.get_app_configs():
            path = Path(application.path)
            if not any(library in path.parents for library in libraries):
                self.watch_dir(path, "**/*.py")
        autoreload_started.send(sender=self)
        self._ticker = self.tick()
        next(self._ticker)  # what is there now; changes from here on are noticed
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def notify_file_changed(self, path: Any) -> None:
        # Not Django's: there a receiver may swallow a template, but the children's template caches must go too.
        self._noticed = Path(path)

    def _run(self) -> None:
        while not self._over.wait(self.INTERVAL):
            next(self._ticker)
            noticed = self._noticed
            while self._noticed is not None:
                # An editor or a version control system writes many files: wait until it is done.
                self._noticed = None
                if self._over.wait(SETTLE):
                    return
                next(self._ticker)
            if noticed is not None:
                self._changed(noticed)
