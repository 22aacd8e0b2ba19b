"""The application: with it in INSTALLED_APPS there are the commands, the system checks and the admin's page."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.db.models.signals import post_migrate


class RaftSQLiteConfig(AppConfig):
    """Optional: the ENGINE works without it."""

    name = "django_raftsqlite"
    verbose_name = "SQLite (Raft)"

    def ready(self) -> None:
        from .permissions import create_permissions  # noqa: PLC0415
        from .validation import check_deployment, check_settings  # noqa: PLC0415 - after the settings

        checks.register(check_settings)
        checks.register(check_deployment, deploy=True)
        post_migrate.connect(create_permissions, dispatch_uid="django_raftsqlite.permissions")
