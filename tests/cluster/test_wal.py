"""A node keeps its WAL small while it serves, and says who keeps it from that."""

from __future__ import annotations

from pathlib import Path

from django_raftsqlite import dbapi
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.process import ProcessNode
from tests.support.nodes import eventually

LIMIT = 1024 * 1024
FILL = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000) "
    "INSERT INTO t(a) SELECT randomblob(1000) FROM c"
)


def test_the_wal_of_a_node_shrinks_when_its_old_readers_have_ended(tmp_path: Path) -> None:
    """With no write that would bring it about; status tells size and age. Open transactions that write go on."""
    config = NodeConfig(
        name=tmp_path / "db.sqlite3", address="localhost", peers=("localhost",), durable=False, wal_limit=LIMIT
    )
    node = ProcessNode(config)
    try:
        writer, reader = (dbapi.connect(config, node=node) for _ in range(2))
        writer.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a)")
        writer.execute(FILL)
        half = reader.execute("SELECT id FROM t")
        for _ in range(4):
            writer.execute("BEGIN")
            writer.execute(FILL)
            writer.execute("DELETE FROM t WHERE id % 1000 = 7")
            writer.execute("COMMIT")
        status = node.status()
        assert status["wal_bytes"] > 3 * LIMIT
        assert status["oldest_snapshot"] >= 0
        assert len(half.fetchall()) == 1000
        eventually(lambda: node.status()["wal_bytes"] <= LIMIT, "the WAL is small again")
        status = node.status()
        assert status["oldest_snapshot"] is None
        assert (status["role"], status["reason"]) == ("leader", None)
        assert writer.execute("SELECT count(*) FROM t").fetchall() == [(4996 - 1 + 0,)]
        for connection in (writer, reader):
            connection.close()
    finally:
        node.close()
