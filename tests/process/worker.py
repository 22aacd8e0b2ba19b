"""A node process of the test project that does what its standard input says.

One JSON object a line: ``{"id": 1, "session": "main", "verb": "create", "args": {...}}``, answered on standard output
by ``{"id": 1, "ok": value}`` or ``{"id": 1, "error": [class, text]}``. Each session is a thread with a database
connection of its own, which runs its commands in turn, so that a transaction may stay open between two commands.
The process ends cleanly at the end of its standard input, so that it never outlives the test.

``TEST_DIAL`` (JSON, ``{"host:port": [host, port]}``) sends connections to a peer through a proxy.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import signal
import sys
import threading
from asyncio import BaseEventLoop
from collections.abc import Callable
from importlib import import_module
from typing import Any

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(threadName)s] %(message)s"


def through_proxies(routes: dict[str, list[Any]]) -> None:
    """Let this process reach the addresses in ``routes`` at other ones. The node itself knows nothing of it."""
    create_connection = BaseEventLoop.create_connection

    def routed(loop: Any, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        host, port = routes.get(f"{host}:{port}", (host, port))
        return create_connection(loop, factory, host, port, **options)

    BaseEventLoop.create_connection = routed  # type: ignore[method-assign,assignment]


Verbs = dict[str, Callable[..., Any]]


class Session:
    """A thread that runs the commands it is given, one after the other."""

    def __init__(self, name: str, verbs: Verbs, answer: Callable[[dict[str, Any]], None]) -> None:
        self._verbs = verbs
        self._answer = answer
        self._commands: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"session {name}")
        self._thread.start()

    def put(self, command: dict[str, Any]) -> None:
        self._commands.put(command)

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join()

    def _run(self) -> None:
        from django.db import connection

        while (command := self._commands.get()) is not None:
            answer: dict[str, Any] = {"id": command["id"]}
            try:
                answer["ok"] = self._verbs[command["verb"]](**command.get("args", {}))
            except Exception as error:
                logging.getLogger("tests.worker").info("%s failed", command["verb"], exc_info=True)
                answer["error"] = [type(error).__name__, str(error), getattr(error, "reason", None)]
            self._answer(answer)
        connection.close()


def main(module: str) -> None:
    """Serve until standard input ends. ``module`` has the verbs, and ``finish()`` for the end."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then stops its processes
    through_proxies(json.loads(os.environ.get("TEST_DIAL", "{}")))

    import django

    django.setup()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=LOG_FORMAT, force=True)
    logging.getLogger("django_raftsqlite").setLevel(os.environ.get("TEST_LOG_LEVEL", "INFO"))

    from django_raftsqlite.node.registry import close_nodes

    verbs = import_module(module)
    mutex = threading.Lock()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print must not look like an answer

    def answer(message: dict[str, Any]) -> None:
        with mutex:
            out.write(json.dumps(message) + "\n")
            out.flush()

    sessions: dict[str, Session] = {}
    answer({"id": 0, "ok": os.getpid()})
    for line in sys.stdin:
        command = json.loads(line)
        name = command["session"]
        if name not in sessions:
            sessions[name] = Session(name, verbs.VERBS, answer)
        sessions[name].put(command)
    verbs.finish()
    for session in sessions.values():
        session.close()
    close_nodes()


if __name__ == "__main__":
    main("tests.process.verbs")
