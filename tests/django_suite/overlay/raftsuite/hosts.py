"""Hosts nodes of one group until its standard input ends: ``[[name, address, peers], ...]`` is its first line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from django_raftsqlite.functions import register_django_functions
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.process import ProcessNode
from raftsuite.groups import DEADLINE, SECRET


def main() -> None:
    nodes = [
        ProcessNode(
            NodeConfig(
                name=Path(name),
                address=address,
                peers=tuple(peers),
                secret=SECRET if len(peers) > 1 else None,
                lease_timeout=None,
                durable=False,
                registrars=(register_django_functions,),
            )
        )
        for name, address, peers in json.loads(sys.stdin.readline())
    ]
    try:
        for node in nodes:
            node.backend()
        end = time.monotonic() + DEADLINE
        while not all(node.status()["leader"] for node in nodes):
            if time.monotonic() > end:
                sys.exit("no leader")
            time.sleep(0.02)
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        for node in nodes:
            node.close()


if __name__ == "__main__":
    main()
