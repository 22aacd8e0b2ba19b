"""The permissions to look at a group and to act on it: rows of django.contrib.auth, without a model of ours."""

from __future__ import annotations

from typing import Any

from django.apps import apps as installed
from django.db import DEFAULT_DB_ALIAS, router

APP, MODEL = "django_raftsqlite", "raft"
PERMISSIONS = (("view_raft", "Can view the Raft group"), ("change_raft", "Can act on the Raft group"))


def create_permissions(
    app_config: Any = None,
    using: str = DEFAULT_DB_ALIAS,
    apps: Any = installed,
    **kwargs: Any,  # noqa: ARG001 - Django's signature
) -> None:
    """Receives post_migrate: makes the rows that are missing, when django.contrib.auth is migrated."""
    if app_config is not None and app_config.label != "auth":
        return
    try:
        kind, permission = apps.get_model("contenttypes", "ContentType"), apps.get_model("auth", "Permission")
    except LookupError:
        return
    if not router.allow_migrate_model(using, permission):
        return
    found, _ = kind.objects.using(using).get_or_create(app_label=APP, model=MODEL)
    for codename, name in PERMISSIONS:
        permission.objects.using(using).get_or_create(content_type=found, codename=codename, defaults={"name": name})
