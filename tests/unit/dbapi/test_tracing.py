"""Spans for commits and for waiting for the write lease, as an application's OpenTelemetry sees them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from django_raftsqlite import dbapi
from django_raftsqlite.node import tracing
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.registry import close_node

SECRET = "nobody may read this in a trace"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Any]:
    config = NodeConfig(name=tmp_path / "x.sqlite3", address="localhost", peers=("localhost",), durable=False)
    made = dbapi.connect(config)
    yield made
    made.close()
    close_node(config.name)


def test_each_commit_and_each_wait_for_the_lease_is_a_span(connection: Any, spans: InMemorySpanExporter) -> None:
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t VALUES (1, ?)", (SECRET,))
    connection.execute("COMMIT")
    finished = spans.get_finished_spans()
    assert [span.name for span in finished] == [tracing.COMMIT, tracing.LEASE_WAIT, tracing.COMMIT]
    assert [dict(span.attributes or {}) for span in finished] == [
        {"db.system.name": "sqlite", "db.namespace": "x.sqlite3", "raftsqlite.node": "localhost", **more}
        for more in ({"raftsqlite.autocommit": True}, {}, {"raftsqlite.autocommit": False})
    ]


def test_a_write_that_fails_is_an_error_without_its_message_or_its_values(
    connection: Any, spans: InMemorySpanExporter
) -> None:
    connection.execute("CREATE TABLE t (a TEXT UNIQUE)")
    connection.execute("INSERT INTO t VALUES (?)", (SECRET,))
    spans.clear()
    with pytest.raises(dbapi.IntegrityError):
        connection.execute("INSERT INTO t VALUES (?)", (SECRET,))
    (span,) = spans.get_finished_spans()
    assert not span.status.is_ok
    assert (span.attributes or {})["error.type"] == "StatementError"
    assert span.events == ()
    assert SECRET not in span.to_json()
    assert "INSERT" not in span.to_json()


def test_reads_have_no_span(connection: Any, spans: InMemorySpanExporter) -> None:
    connection.execute("SELECT 1").fetchall()
    assert spans.get_finished_spans() == ()


def test_an_application_without_a_provider_pays_for_no_span(tmp_path: Path) -> None:
    config = NodeConfig(name=tmp_path / "x.sqlite3", address="localhost", peers=("localhost",))
    assert tracing.span(tracing.COMMIT, config) is tracing._nothing


def test_all_works_without_the_package() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from django_raftsqlite.node import tracing\n"
        "assert tracing._tracer is None\n"
        "with tracing.span('x', None): print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "fine\n"
