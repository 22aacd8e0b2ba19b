"""What must be so before a member opens its log, and what log and settings must agree on."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from .admission import ADDRESS, CLUSTER, RENAMED, TAKEN_OVER, cluster_id
from .config import RaftConfig
from .log import RaftLog
from .members import Members


def make_folder(folder: Path, mode: int) -> None:
    """Create the folder, searchable by whom ``mode`` lets read, whatever the umask; one that exists is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    searchable = mode | (mode & 0o444) >> 2
    try:
        folder.mkdir(searchable)
    except FileExistsError:
        return
    folder.chmod(searchable)


def check_members(config: RaftConfig, log: RaftLog) -> None:
    """What the log knows of the members holds, and not the settings; raises ValueError where they cannot both
    be meant."""
    stored = log.members
    address = (log.get_meta(ADDRESS) or config.address.encode()).decode()
    if stored.voters and len(stored.all) == 1 and config.address not in stored:
        # Nobody else knows it by its address.
        stored = Members(stored.index, tuple(replace(member, address=config.address) for member in stored))
        log.found(stored)
        log.set_meta(RENAMED, b"1")
    elif address != config.address:
        raise ValueError(
            f"The log {config.log} is that of the member {address}, not of {config.address}. Restore the old "
            "address; or have it removed from the group, move the folder away, and join with the new one."
        )
    log.set_meta(ADDRESS, config.address.encode())
    log.sync()
    begins = log.last_index <= 1 and stored.founding and bool(stored.index)
    if begins and not config.seeks and stored.voters != set(config.peers):
        before, now = (", ".join(sorted(addresses)) for addresses in (stored.voters, config.peers))
        raise ValueError(
            f"The log {config.log} was made for a new group of {before}, which it did not hear of since, and the "
            f"settings say {now}. Restore the old peers setting, or move the folder away to begin anew."
        )
    if log.get_meta(CLUSTER) is None and config.peers:
        alone = config.peers == (config.address,)
        log.set_meta(CLUSTER, secrets.token_bytes(16) if alone else cluster_id(config.peers))
        if config.taken_over:
            log.set_meta(TAKEN_OVER, b"1")
        log.sync()
