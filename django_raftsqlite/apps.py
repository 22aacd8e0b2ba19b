"""The application: with it in INSTALLED_APPS there are ``manage.py raft`` and ``manage.py runcluster``."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class RaftSQLiteConfig(AppConfig):
    """Optional: the ENGINE works without it."""

    name = "django_raftsqlite"
    verbose_name = "SQLite (Raft)"

    def ready(self) -> None:
        from .validation import check_deployment, check_settings  # noqa: PLC0415 - after the settings

        checks.register(check_settings)
        checks.register(check_deployment, deploy=True)
