"""System checks ``raftsqlite.*``; the page "System checks" (docs/checks.md) has them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.validation import BaseDatabaseValidation

from . import node_checks, settings_checks
from .configuration import Configuration, configure, find_problems

Messages = list[checks.CheckMessage]


class DatabaseValidation(BaseDatabaseValidation):
    """What ``manage.py check --database <alias>`` and ``migrate`` run: they may ask the node, if it runs."""

    def check(self, **kwargs: Any) -> Messages:
        alias, settings_dict = self.connection.alias, self.connection.settings_dict
        return super().check(**kwargs) + check_alias(alias, settings_dict) + check_group(alias, settings_dict)


def check_settings(
    databases: Sequence[str] | None = None,
    **kwargs: Any,  # noqa: ARG001 - Django's signature
) -> Messages:
    """What ``manage.py check`` runs for the aliases that Django's own database check leaves out, and between aliases.

    Only settings and files are looked at; no node is opened.
    """
    found: Messages = []
    for alias, settings_dict in _ours().items():
        if alias not in (databases or ()):
            found += check_alias(alias, settings_dict)
    return found + list(settings_checks.of_all(_configurations()))


def check_deployment(
    databases: Sequence[str] | None = None,  # noqa: ARG001 - Django's signature
    **kwargs: Any,  # noqa: ARG001
) -> Messages:
    """What ``manage.py check --deploy`` runs besides; nodes that run are asked."""
    configurations = _configurations()
    found = list(settings_checks.of_deployment(configurations))
    for alias, configuration in configurations.items():
        status = node_checks.status_of(configuration.node)
        if status is not None:
            found += node_checks.of_backups(alias, status)
    return found


def check_alias(alias: str, settings_dict: dict[str, Any]) -> Messages:
    """Every error and warning about one alias, by its settings and files."""
    found: Messages = [
        checks.Error(f"{problem.path} {problem.text}", hint=problem.advice or None, id=f"raftsqlite.{problem.id}")
        for problem in find_problems(alias, settings_dict)
    ]
    configuration = None if found else _configured(alias, settings_dict)
    if configuration is not None:
        found += settings_checks.of_alias(alias, settings_dict, configuration)
    return found


def check_group(alias: str, settings_dict: dict[str, Any]) -> Messages:
    """Every warning about one alias by what its node knows; none where no process hosts that."""
    configuration = _configured(alias, settings_dict)
    status = None if configuration is None else node_checks.status_of(configuration.node)
    if configuration is None or status is None:
        return []
    return list(node_checks.of_group(alias, status))


def _ours() -> dict[str, dict[str, Any]]:
    return {alias: each for alias, each in connections.settings.items() if each["ENGINE"] == __package__}


def _configurations() -> dict[str, Configuration]:
    """Those of the aliases that have no error of their own."""
    found = {alias: _configured(alias, each) for alias, each in _ours().items()}
    return {alias: each for alias, each in found.items() if each is not None}


def _configured(alias: str, settings_dict: dict[str, Any]) -> Configuration | None:
    try:
        return configure(alias, settings_dict)
    except ImproperlyConfigured:
        return None
