"""The ledger."""

from django.apps import AppConfig


class LedgerConfig(AppConfig):
    """Accounts whose total never changes, and events that are written exactly once: the fault tests' workloads."""

    name = "ledger"
