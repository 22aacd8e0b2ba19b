"""A check for django-health-check (4 and later): ``HealthCheckView.as_view(checks=[...])``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from django.db import DEFAULT_DB_ALIAS, connections
from health_check.base import HealthCheck
from health_check.exceptions import ServiceUnavailable

from .readiness import Demands, why_not_ready


@dataclass
class RaftNode(HealthCheck):
    """Whether the node of an alias is ready, as ``readyz`` has it; see :class:`~.readiness.Demands`."""

    alias: str = DEFAULT_DB_ALIAS
    leader: bool = False
    max_lag: int | None = None
    sync: bool = False

    async def run(self) -> None:
        """Raises ServiceUnavailable that says why not."""
        why = await asyncio.to_thread(self._look)
        if why is not None:
            raise ServiceUnavailable(f"the node of database {self.alias!r} is not ready: {why}")

    def _look(self) -> str | None:
        try:
            return why_not_ready(self.alias, Demands(leader=self.leader, max_lag=self.max_lag, sync=self.sync))
        finally:
            connections.close_all()
