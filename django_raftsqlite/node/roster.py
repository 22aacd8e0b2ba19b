"""Who the members are, in a file beside the log, for those who may not open the log: checks, and the next start."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..raft.members import Members
from .api import NodeConfig

logger = logging.getLogger("django_raftsqlite.node")

NAME = "members.json"


@dataclass(frozen=True, slots=True)
class Roster:
    """The members' roles by their addresses, as the node knew them when it last ran."""

    roles: dict[str, str]

    @property
    def voters(self) -> frozenset[str]:
        """The addresses of those who vote."""
        return frozenset(address for address, role in self.roles.items() if role == "voter")


def write(folder: Path, members: Members, mode: int) -> None:
    """Put down the members. Only a hint, so it is not synced, and a failure is only logged."""
    path = folder / NAME
    roles = {member.address: member.role.value for member in members}
    draft = path.with_suffix(".new")
    try:
        draft.write_text(json.dumps({"index": members.index, "members": roles}, indent=1) + "\n")
        draft.chmod(mode)
        draft.replace(path)
    except OSError as error:
        logger.warning("%s could not be written: %s", path, error)


def read(folder: Path) -> Roster | None:
    """What was put down, None where there is nothing of use."""
    try:
        told: Any = json.loads((folder / NAME).read_text())
        return Roster({str(address): str(role) for address, role in told["members"].items()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def is_alone(config: NodeConfig) -> bool:
    """Whether the node was the only member of its group when it last ran, or is to be that."""
    known = read(config.folder)
    if known is None or not known.roles:
        return config.peers == (config.address,) and not config.join and config.discovery is None
    return known.roles.keys() == {config.address}
