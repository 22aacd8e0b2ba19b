"""Spans of OpenTelemetry around what a process waits for, where its API package is installed; else nothing.

They never carry a statement's text, its parameters, or an error's message: those belong to the application.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from .. import __version__
from .api import NodeConfig

try:
    from opentelemetry import trace
except ImportError:
    _tracer = None
else:
    # Of whatever provider the application sets, also later on.
    _tracer = trace.get_tracer("django_raftsqlite", __version__)

COMMIT = "raftsqlite.commit"
LEASE_WAIT = "raftsqlite.lease_wait"
SPANS = (COMMIT, LEASE_WAIT)

_nothing = nullcontext()


def span(name: str, config: NodeConfig, **attributes: bool | int | str) -> AbstractContextManager[Any]:
    """A span of the calling thread, with the node's attributes and ``raftsqlite.<attribute>``."""
    return _nothing if _tracer is None or not _provided() else _span(name, config, attributes)


def _provided() -> bool:
    # Else a span that nobody sees takes 15 us.
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def _span(name: str, config: NodeConfig, attributes: dict[str, bool | int | str]) -> Iterator[None]:
    assert _tracer is not None
    told: dict[str, bool | int | str] = {
        "db.system.name": "sqlite",
        "db.namespace": config.name.name,
        "raftsqlite.node": config.address,
    }
    told |= {f"raftsqlite.{key}": value for key, value in attributes.items()}
    with _tracer.start_as_current_span(
        name, kind=trace.SpanKind.CLIENT, attributes=told, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(trace.StatusCode.ERROR)
            raise
