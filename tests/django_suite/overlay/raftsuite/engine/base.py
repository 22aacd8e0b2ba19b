"""The wrapper: each test database's node is configured by its group."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from django_raftsqlite import base
from django_raftsqlite.creation import DatabaseCreation as OneNodeCreation
from raftsuite.groups import GROUPS, start_group, stop_group


class DatabaseCreation(OneNodeCreation):
    """Starts and stops the other nodes with the database."""

    def _create_test_db(self, verbosity: int, autoclobber: bool, keepdb: bool = False) -> str:
        name = super()._create_test_db(verbosity, autoclobber, keepdb)
        start_group(Path(name))
        return name

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        stop_group(Path(test_database_name))
        super()._destroy_test_db(test_database_name, verbosity)


class DatabaseWrapper(base.DatabaseWrapper):
    """Our wrapper, on the node of a group."""

    creation_class = DatabaseCreation

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        configuration = params["configuration"]
        group = GROUPS.get(str(configuration.node.name))
        if group is not None:
            node = group.config(configuration.node)
            params["configuration"] = dataclasses.replace(configuration, node=node)
        return params
