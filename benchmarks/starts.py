"""How long a node takes to start, with a history behind it and without.

    python -m benchmarks.starts [--mebibytes 1024] [--entries 1000000] [--dir FOLDER]

The defaults are what is promised: a database of 1 GB and a million log entries, which takes about three minutes. The
node is killed each time; a start is over when it leads and has applied all. Python's own start and imports are not
counted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from django_raftsqlite import dbapi
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.host import HostedNode
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.sqlite.entry import Entry, encode_entry

STARTS = 5
AT_ONCE = 500
"""Entries that are proposed at a time."""
BEHIND = 5000
"""Entries that wait to be applied, at most."""
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the database")
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the log, behind it")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to be measured")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return run(options.child, options.mebibytes, options.entries)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        for name, mebibytes, entries in (("new", 0, 0), ("old", options.mebibytes, options.entries)):
            if mebibytes or entries:
                child(Path(folder) / name, mebibytes, entries)
            for _ in range(STARTS):
                child(Path(folder) / name, 0, 0)
    return 0


def child(folder: Path, mebibytes: int, entries: int) -> None:
    """A process that starts the node there, fills it, and is killed."""
    words = ["--child", str(folder), "--mebibytes", str(mebibytes), "--entries", str(entries)]
    subprocess.run([sys.executable, "-m", "benchmarks.starts", *words], check=True)


def run(folder: Path, mebibytes: int, entries: int) -> int:
    folder.mkdir(exist_ok=True)
    config = NodeConfig(name=folder / "db.sqlite3", address="localhost", peers=("localhost",))
    began = time.monotonic()
    node = ProcessNode(config)
    told = applied(node)
    if not mebibytes and not entries:
        took, log, size = time.monotonic() - began, told["log"]["entries"], config.name.stat().st_size // MIB
        entries_behind = f"{told['applied_index']} entries behind it, of which {log} are in the log"
        print(f"{folder.name}: {took:.3f} s, with {entries_behind}, and a database of {size} MiB", flush=True)
    write_ballast(config, node, mebibytes)
    propose(node, entries)
    os._exit(0)


def applied(node: ProcessNode) -> dict[str, Any]:
    """The node's status once it has applied all."""
    while True:
        told: dict[str, Any] = node.status()
        if told["role"] == "leader" and told["applied_index"] == told["commit_index"]:
            return told
        time.sleep(0.001)


def write_ballast(config: NodeConfig, node: ProcessNode, mebibytes: int) -> None:
    connection = dbapi.connect(config, node=node)
    connection.execute("CREATE TABLE IF NOT EXISTS ballast(id INTEGER PRIMARY KEY, data)")
    for _ in range(mebibytes // 32):
        connection.execute(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 8192) "
            "INSERT INTO ballast(data) SELECT randomblob(4000) FROM c"
        )
    connection.close()


def propose(node: ProcessNode, entries: int) -> None:
    """Entries without transactions, by which the log grows fastest; each of them is applied."""
    backend = node.backend()
    assert isinstance(backend, HostedNode)
    driver, payload = backend._driver, encode_entry(Entry(1, ()))
    for _ in range(entries // AT_ONCE):
        proposed = threading.Event()

        def some(proposed: threading.Event = proposed) -> None:
            for _ in range(AT_ONCE):
                driver.propose(payload)
            proposed.set()

        driver.call(some)
        proposed.wait()
        while (told := node.status())["commit_index"] - told["applied_index"] > BEHIND:
            time.sleep(0.005)
    applied(node)


if __name__ == "__main__":
    sys.exit(main())
