"""Commits per second of the Raft layer alone: three processes on loopback, every log fsynced, no SQL.

    python benchmarks/raft_shell.py [--seconds 2] [--size 300] [--dir FOLDER]

Prints commits/s and the median and 99th percentile latency with 1, 16 and 64 proposals in flight, proposed on the
leader by its loop (what the node's sequencer does) and by threads that wait for their commit.
"""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django_raftsqlite.raft.config import RaftConfig
from django_raftsqlite.raft.driver import RaftDriver


class Load:
    """Keeps a number of proposals in flight on the leader and measures each."""

    def __init__(self, size: int) -> None:
        self.driver: RaftDriver | None = None
        self._payload = secrets.token_bytes(size)
        self._waiting: dict[int, Callable[[], None]] = {}
        self._latencies: list[float] = []
        self._running = False

    def on_commit(self, index: int, _term: int, _payload: bytes) -> None:
        done = self._waiting.pop(index, None)
        if done is not None:
            done()

    def _propose(self, done: Callable[[], None]) -> None:
        assert self.driver is not None
        place = self.driver.propose(self._payload)
        if place is None:
            raise SystemExit("leadership was lost; run the benchmark again")
        self._waiting[place[0]] = done

    def _chain(self) -> None:
        began = time.perf_counter()

        def done() -> None:
            self._latencies.append(time.perf_counter() - began)
            if self._running:
                self._chain()

        self._propose(done)

    def _thread(self) -> None:
        assert self.driver is not None
        while self._running:
            committed = threading.Event()
            began = time.perf_counter()
            self.driver.call(self._propose, committed.set)
            committed.wait(10)
            self._latencies.append(time.perf_counter() - began)

    def run(self, count: int, seconds: float, *, threads: bool) -> dict[str, float]:
        assert self.driver is not None
        self._latencies = []
        self._running = True
        workers = [threading.Thread(target=self._thread) for _ in range(count if threads else 0)]
        for worker in workers:
            worker.start()
        for _ in range(0 if threads else count):
            self.driver.call(self._chain)
        time.sleep(seconds)
        self._running = False
        done = len(self._latencies)
        for worker in workers:
            worker.join()
        time.sleep(0.2)
        ordered = sorted(self._latencies[:done])
        return {
            "rate": done / seconds,
            "p50": statistics.median(ordered) * 1000,
            "p99": ordered[int(len(ordered) * 0.99)] * 1000,
        }


def member(address: str, peers: list[str], folder: str, size: int) -> None:
    """One process: answers each line of its input with a line of JSON."""
    load = Load(size)
    config = RaftConfig(address, tuple(peers), Path(folder) / f"{address}.raft" / "log", secret="benchmark")
    driver = load.driver = RaftDriver(
        config, applied=0, on_commit=load.on_commit, on_message=lambda *_: None, on_view=lambda _: None
    )
    driver.start()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            answer: Any
            if request["do"] == "leads":
                answer = driver.view.role == "leader" and driver.view.established
            else:
                answer = load.run(request["count"], request["seconds"], threads=request["threads"])
            print(json.dumps(answer), flush=True)
    finally:
        driver.stop(timeout=1, hand_over=False)


class Process:
    """A member's process, seen from outside."""

    def __init__(self, address: str, peers: list[str], folder: str, size: int) -> None:
        arguments = [address, ",".join(peers), folder, str(size)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--member", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.communicate(timeout=20)


def free_addresses(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    for sock in sockets:
        sock.close()
    return addresses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--size", type=int, default=300, help="bytes of one entry")
    parser.add_argument("--dir", help="where the logs are made (default: a temporary folder)")
    parser.add_argument("--member", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        address, peers, folder, size = options.member
        member(address, peers.split(","), folder, int(size))
        return
    peers = free_addresses(3)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        processes = [Process(address, peers, folder, options.size) for address in peers]
        try:
            deadline = time.monotonic() + 20
            while not (leaders := [process for process in processes if process.ask(do="leads")]):
                if time.monotonic() > deadline:
                    raise SystemExit("no leader within 20 s")
                time.sleep(0.05)
            print(f"{'proposed by':<14}{'in flight':>10}{'commits/s':>12}{'p50 ms':>9}{'p99 ms':>9}")
            for threads in (False, True):
                for count in (1, 16, 64):
                    result = leaders[0].ask(do="run", count=count, seconds=options.seconds, threads=threads)
                    print(
                        f"{'threads' if threads else 'the loop':<14}{count:>10}{result['rate']:>12,.0f}"
                        f"{result['p50']:>9.2f}{result['p99']:>9.2f}"
                    )
        finally:
            for process in processes:
                process.stop()


if __name__ == "__main__":
    main()
