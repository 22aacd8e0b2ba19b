"""TCP proxies between the nodes of a cluster, which can delay or hold what goes one way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .cluster import Cluster


class Valve:
    """One direction of a link. ``delay`` is seconds; while ``closed`` nothing passes and nothing is lost."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.open = asyncio.Event()
        self.open.set()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on in their order, each piece ``delay`` after it came."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def take() -> None:
            data = b"-"
            while data:
                try:
                    data = await reader.read(65536)
                except OSError:
                    data = b""
                pieces.put_nowait((loop.time(), data))

        taking = asyncio.create_task(take())
        try:
            while True:
                came, data = await pieces.get()
                if self.delay:
                    await asyncio.sleep(max(came + self.delay - loop.time(), 0))
                await self.open.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Network:
    """A proxy for every pair of members. Its loop runs on a thread of its own; any thread may call.

    :meth:`install` it before the cluster starts. Of two members only one dials; the proxy knows which by the address
    that was dialled, so ``valve(a, b)`` is the direction from a to b whoever opened the connection. ``hosts``: see
    :class:`.cluster.Cluster`.
    """

    hosts = None

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies")
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._links: dict[asyncio.Task[None], frozenset[str]] = {}
        self._valves: dict[tuple[str, str], Valve] = {}

    def install(self, cluster: Cluster) -> None:
        """Route all that the members dial through proxies."""
        for node in cluster:
            routes = {}
            for peer in cluster.peers:
                if peer != node.address:
                    port = self._call(self._listen(node.address, peer))
                    routes[peer] = ["127.0.0.1", port]
            node.environment["TEST_DIAL"] = json.dumps(routes)

    def delay(self, source: str, target: str, seconds: float) -> None:
        """What ``source`` sends to ``target`` from now on arrives this much later."""
        self._on_loop(lambda: setattr(self._valve(source, target), "delay", seconds))

    def hold(self, source: str, target: str) -> None:
        """Let nothing from ``source`` through to ``target``; it is kept."""
        self._on_loop(self._valve(source, target).open.clear)

    def release(self, source: str, target: str) -> None:
        """Let it flow again, what was kept first."""
        self._on_loop(self._valve(source, target).open.set)

    def cut(self, one: str, other: str) -> None:
        """End their connections, and what is kept of them is lost. They may connect anew."""

        def end() -> None:
            for task, link in self._links.items():
                if link == {one, other}:
                    task.cancel()

        self._on_loop(end)

    def close(self) -> None:
        """Cut everything."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _valve(self, source: str, target: str) -> Valve:
        return self._valves.setdefault((source, target), Valve())

    async def _listen(self, source: str, target: str) -> int:
        host, port = target.split(":")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._links[task] = frozenset((source, target))
            try:
                there_reader, there_writer = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()
                return
            else:
                forth = self._valve(source, target).pump(reader, there_writer)
                back = self._valve(target, source).pump(there_reader, writer)
                # cut() ends it, which asyncio's server would take for a fault.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.gather(forth, back)
            finally:
                del self._links[task]

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        address: tuple[str, int] = server.sockets[0].getsockname()
        return address[1]

    async def _shut(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._links):
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _on_loop(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        self._call(act())

    def _call(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(10)
