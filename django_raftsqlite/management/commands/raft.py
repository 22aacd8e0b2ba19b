"""``manage.py raft``: status, verify, snapshot, node; add, remove, transfer, recover; backups of all kinds; cert."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Mapping
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections

from django_raftsqlite.addresses import parse_address
from django_raftsqlite.configuration import Configuration, configure
from django_raftsqlite.exceptions import HostLost, OperationalError
from django_raftsqlite.management.backup_verbs import BackupVerbs, add_verbs
from django_raftsqlite.management.certificates import add_cert, run_cert
from django_raftsqlite.management.status import has_leader, render
from django_raftsqlite.management.stopping import StopSignals
from django_raftsqlite.management.systemd import notify
from django_raftsqlite.management.verification import outcome_of
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.attached import AttachedNode
from django_raftsqlite.node.process import ProcessNode
from django_raftsqlite.node.recovery import plan_recovery
from django_raftsqlite.node.registry import attach_node, open_node

POLL = 1.0
VERIFY_POLL = 0.2


class Command(BaseCommand):
    """One command, a sub-command for each thing to do with a node."""

    help = "Shows the Raft group of a database, or hosts this machine's node of it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        status = verbs.add_parser(
            "status", help="show the node and its group; exit status 1 without a leader in reach"
        )
        status.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
        verify = verbs.add_parser(
            "verify",
            help="compare the whole content of all members at one log index, while they go on; exit status 1 where "
            "it differs, 2 where not all members answered",
        )
        verify.add_argument("--format", choices=["table", "json"], default="table", help="default: table")
        verify.add_argument(
            "--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait; default: 600"
        )
        snapshot = verbs.add_parser(
            "snapshot",
            help="cut this node's Raft log now: its database file, brought to the disk, stands for what is cut; it "
            "is no backup, and happens by itself when the log has grown",
        )
        snapshot.add_argument(
            "--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait; default: 60"
        )
        add = verbs.add_parser(
            "add",
            help="make a node a member: a learner first, which becomes a voter when it has caught up",
        )
        add.add_argument("address", metavar="HOST:PORT", help='its OPTIONS["node"]')
        add.add_argument("--learner", action="store_true", help="it stays a learner: a copy that never votes")
        remove = verbs.add_parser("remove", help="make a node a member no longer, whether it runs or not")
        remove.add_argument("address", metavar="HOST:PORT", help='its OPTIONS["node"]')
        transfer = verbs.add_parser("transfer", help="have another voter lead the group")
        transfer.add_argument("address", metavar="HOST:PORT", nargs="?", default="", help="default: the best suited")
        changes = (add, remove, transfer)
        for verb in changes:
            verb.add_argument(
                "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long to wait; default: 10"
            )
        recover = verbs.add_parser(
            "recover",
            help="begin a new group with what this node has, where more than half of the voters are lost for good",
        )
        recover.add_argument(
            "--members",
            nargs="+",
            required=True,
            metavar="HOST:PORT",
            help="the members of the new group, this node among them; the others begin empty",
        )
        recover.add_argument("--yes", action="store_true", help="do it; without it, only tell what would be done")
        node = verbs.add_parser("node", help="host the node without serving pages, until SIGTERM or SIGINT")
        add_cert(verbs)
        for verb in (status, verify, snapshot, node, recover, *changes, *add_verbs(verbs)):
            verb.add_argument(
                "--database", default=DEFAULT_DB_ALIAS, metavar="ALIAS", help=f"default: {DEFAULT_DB_ALIAS}"
            )
            # Django takes these anywhere on the line; a sub-parser must not stumble over them.
            for option in ("--settings", "--pythonpath"):
                verb.add_argument(option, default=SUPPRESS, help=SUPPRESS)

    def handle(self, *_args: Any, verb: str, database: str = DEFAULT_DB_ALIAS, **options: Any) -> None:
        if verb == "cert":  # before there are settings that name its files
            self._tell(run_cert(options))
            return
        configuration = configuration_of(database)
        if verb == "status":
            self.show_status(database, configuration.node, options["format"])
        elif verb == "verify":
            self.verify(configuration.node, options["format"], options["timeout"])
        elif verb == "snapshot":
            self.snapshot(configuration.node, options["timeout"])
        elif verb == "recover":
            self.recover(configuration.node, options["members"], options["yes"])
        elif verb == "node":
            self.host_node(configuration.node)
        elif verb in {"add", "remove", "transfer"}:
            self.change_members(configuration.node, verb, options)
        else:
            BackupVerbs(self, database, configuration.node, options).run(verb)

    def change_members(self, config: NodeConfig, verb: str, options: Mapping[str, Any]) -> None:
        """Ask the leader for a change, through the process that hosts this node. Exits with 1 when it is refused."""
        address = options["address"]
        fault = parse_address(address) if address else None
        if isinstance(fault, str):
            raise CommandError(f"{address!r} is not an address: {fault}")
        node = self._attach(config)
        try:
            done = node.change_members(
                verb, address, learner=options.get("learner", False), timeout=options["timeout"]
            )
        except (HostLost, OperationalError) as error:
            raise CommandError(str(error), returncode=1) from error
        finally:
            node.close()
        self._tell(done)

    def recover(self, config: NodeConfig, members: list[str], yes: bool) -> None:
        """Begin a new group with this node's content; see :mod:`~django_raftsqlite.node.recovery`."""
        for address in members:
            fault = parse_address(address)
            if isinstance(fault, str):
                raise CommandError(f"{address!r} is not an address: {fault}")
        try:
            plan = plan_recovery(config, members)
            self.stdout.write(plan.text)
            if not yes:
                raise CommandError("nothing was done; write --yes to do it", returncode=1)
            plan.carry_out()
        except OperationalError as error:
            raise CommandError(str(error), returncode=1) from error
        self._tell(f"{config.address} begins a new group when it is started")

    def show_status(self, alias: str, config: NodeConfig, form: str) -> None:
        """Ask the process that hosts the node; this one never does. Exits with 1 without a leader in reach."""
        node = self._attach(config)
        try:
            status = node.status()
        except HostLost as error:
            raise CommandError(str(error), returncode=1) from error
        finally:
            node.close()
        if form == "json":
            self.stdout.write(json.dumps(status, indent=2))
        else:
            self.stdout.write(render(alias, status))
        if not has_leader(status):
            sys.exit(1)

    def verify(self, config: NodeConfig, form: str, timeout: float) -> None:
        """Order a verification, wait for all members, and show what they found. Exits with 1 or 2, see the help."""
        node = self._attach(config)
        try:
            verification = node.verify(timeout=config.timeout)
            deadline = time.monotonic() + timeout
            seen: dict[str, Mapping[str, Any]] = {}
            while True:
                found = outcome_of(verification, node.status()["members"], seen)
                if found.complete or time.monotonic() > deadline:
                    break
                time.sleep(VERIFY_POLL)
        except OperationalError as error:
            raise CommandError(str(error), returncode=2) from error
        finally:
            node.close()
        self.stdout.write(json.dumps(found.told, indent=2) if form == "json" else found.render())
        if found.status:
            sys.exit(found.status)

    def snapshot(self, config: NodeConfig, timeout: float) -> None:
        """Have the process that hosts this node cut its log. Exits with 1 when that was not done in time."""
        node = self._attach(config)
        try:
            done = node.snapshot(timeout=timeout)
        except OperationalError as error:
            raise CommandError(str(error), returncode=1) from error
        finally:
            node.close()
        self._tell(done)

    def _attach(self, config: NodeConfig) -> AttachedNode:
        node = attach_node(config)
        if node is None:
            raise CommandError(
                f"no process hosts the node of {config.name}. Start one: manage.py raft node, or a web server.",
                returncode=1,
            )
        return node

    def host_node(self, config: NodeConfig) -> None:
        """Host until SIGTERM or SIGINT, also where OPTIONS["host"] keeps other processes from it."""
        stop = StopSignals(signal.SIGTERM, signal.SIGINT)
        node = open_node(dataclasses.replace(config, host=True, reluctant=False))
        try:
            self._serve(node, config, stop)
        finally:
            self._notify("STOPPING=1")
            node.close()
        self._tell(f"stopped hosting {config.address}")

    def _serve(self, node: ProcessNode, config: NodeConfig, stop: StopSignals) -> None:
        waiting = hosting = False
        while not stop.within(POLL if hosting or waiting else 0.0):
            try:
                status = node.status()
            except OperationalError as error:
                raise CommandError(str(error)) from error
            if not node.hosting:
                # A guest of the process that hosts; when that one ends, the next status() takes over.
                if not waiting:
                    self._ready(f"process {status['host']['pid']} hosts {config.address}: waiting to take over")
                waiting = True
            else:
                if not hosting:
                    self._ready(f"hosting {config.address} ({config.name})")
                hosting = True
                if status["role"] == "failed":
                    raise CommandError(f"the node stopped itself: {status['reason']}")

    def _ready(self, text: str) -> None:
        """Other processes can be started now; a leader may still be missing, since all members start like this."""
        self._tell(text)
        self._notify(f"READY=1\nSTATUS={text}")

    def _tell(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()  # a log is a pipe, and this process runs for long

    def _notify(self, state: str) -> None:
        try:
            notify(state)
        except OSError as error:
            self.stderr.write(f"systemd was not told {state.splitlines()[0]} (NOTIFY_SOCKET): {error}")


def configuration_of(alias: str) -> Configuration:
    """The settings of an alias that uses this backend. Raises CommandError or ImproperlyConfigured."""
    settings = connections.settings
    if alias not in settings:
        raise CommandError(f"there is no database {alias!r}; DATABASES has {', '.join(map(repr, settings))}")
    if settings[alias]["ENGINE"] != "django_raftsqlite":
        raise CommandError(
            f'DATABASES["{alias}"]["ENGINE"] is {settings[alias]["ENGINE"]!r}, not "django_raftsqlite": '
            "it has no node"
        )
    return configure(alias, settings[alias])
