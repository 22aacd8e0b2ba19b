"""``manage.py runcluster``: any project's runserver, once per node of a local cluster."""

from __future__ import annotations

import copy
import dataclasses
import json
import shlex
import signal
import socket
import sys
import time
from argparse import ArgumentParser
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.core.management.color import supports_color
from django.db import connections
from django.utils.autoreload import get_child_arguments
from django.utils.termcolors import colorize

from django_raftsqlite.configuration import configure
from django_raftsqlite.environment import MERGED, environment_variable, merge, read_environment
from django_raftsqlite.exceptions import OperationalError
from django_raftsqlite.management.child import Program
from django_raftsqlite.management.cluster import (
    LOOPBACK,
    ClusterError,
    PlannedNode,
    plan_cluster,
    require_free_ports,
)
from django_raftsqlite.management.reloading import FileWatch
from django_raftsqlite.management.status import table
from django_raftsqlite.management.supervisor import Report, Supervisor
from django_raftsqlite.node.api import NodeConfig
from django_raftsqlite.node.registry import attach_node

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red")
PROBE_TIMEOUT = 1.0


class Command(BaseCommand):
    """Plans the cluster, and lets a :class:`Supervisor` run one ``runserver`` per node."""

    help = "Runs one development server per node of a local cluster; their data stays in --dir."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--nodes", type=int, default=3, help="number of nodes (default: 3)")
        parser.add_argument("--port", type=int, default=8000, help="first node's pages (default: 8000)")
        parser.add_argument("--raft-port", type=int, default=7100, help="first node's Raft address (default: 7100)")
        parser.add_argument("--dir", type=Path, default=Path(".raftsqlite"), help="data (default: .raftsqlite)")
        parser.add_argument("--migrate", action="store_true", help="run migrate once, when there is a leader")
        parser.add_argument(
            "--run",
            action="append",
            default=[],
            metavar="COMMAND",
            help='run a management command once, after --migrate, such as --run "loaddata shop"; may be repeated',
        )
        parser.add_argument("--noreload", action="store_true", help="do not restart the nodes when code changes")
        parser.add_argument("--no-restart", action="store_true", help="do not restart a node that ends")

    def handle(self, *_args: Any, **options: Any) -> int | None:  # type: ignore[override]
        self._colour = not options["no_color"] and (options["force_color"] or supports_color())
        aliases = [
            alias for alias, settings in connections.settings.items() if settings["ENGINE"] == "django_raftsqlite"
        ]
        if not aliases:
            raise CommandError('no database in DATABASES has the ENGINE "django_raftsqlite"')
        try:
            nodes = plan_cluster(
                options["dir"].absolute(),
                nodes=options["nodes"],
                port=options["port"],
                raft_port=options["raft_port"],
                aliases=aliases,
            )
            require_free_ports(nodes)
            self._nodes = {node.name: node for node in nodes}
            self._configs = {node.name: _configs(node) for node in nodes}
        except (ClusterError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
        self._members = {
            config.address: name for name, configs in self._configs.items() for config in configs.values()
        }
        supervisor = Supervisor(
            [self._program(node, "runserver", "--noreload", f"{LOOPBACK}:{node.port}") for node in nodes],
            probe=self._probe,
            show=self._show,
            announce=self._announce,
            restart=not options["no_restart"],
            afterwards=self._afterwards(nodes[0], aliases if options["migrate"] else [], options["run"]),
        )
        self._print_addresses(nodes)
        watch = None if options["noreload"] else FileWatch(lambda path: self._changed(path, supervisor))
        status = self._supervise(supervisor, watch)
        if status:
            sys.exit(status)
        return None

    def _supervise(self, supervisor: Supervisor, watch: FileWatch | None) -> int:
        def stop(_number: int, _frame: FrameType | None) -> None:
            supervisor.stop()

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in numbers}
        try:
            if watch is not None:
                watch.start()
            return supervisor.run()
        finally:
            if watch is not None:
                watch.close()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._announce("stopped")

    def _program(self, node: PlannedNode, *arguments: str) -> Program:
        environment = {environment_variable(alias): json.dumps(_settings_of(node, alias)) for alias in node.settings}
        if node.number > 1:
            environment["DJANGO_RUNSERVER_HIDE_WARNING"] = "true"  # once is enough
        colour = ("--force-color",) if self._colour else ("--no-color",)
        return Program(node.name, (*_manage(), *arguments, *colour), environment)

    def _afterwards(self, node: PlannedNode, migrated: list[str], commands: list[str]) -> list[Program]:
        # The node's environment makes them its guests: it is hosted already.
        lines = [["migrate", "--database", alias] for alias in migrated]
        lines += [shlex.split(command) for command in commands]
        programs = [self._program(node, *line) for line in lines]
        return [dataclasses.replace(program, name=line[0]) for program, line in zip(programs, lines, strict=True)]

    def _probe(self, name: str) -> Report | None:
        asked = time.monotonic()
        reports = []
        for config in self._configs[name].values():
            try:
                node = attach_node(config)
                if node is None:
                    return None
                try:
                    status = node.status()
                finally:
                    node.close()
            except (OperationalError, OSError):
                return None
            leader = self._members.get(status["leader"]) if status["leader"] else None
            reports.append((leader, status["term"], status["commit_index"], status["applied_index"]))
        # With several aliases the first one's leader is announced; the indexes only have to be comparable.
        leader, term = reports[0][:2]
        if any(report[0] is None for report in reports):
            leader = None
        return Report(
            asked=asked,
            leader=leader,
            term=term,
            commit_index=sum(report[2] for report in reports),
            applied_index=sum(report[3] for report in reports),
            serving=_listens(self._nodes[name].port),
        )

    def _changed(self, path: Path, supervisor: Supervisor) -> None:
        with suppress(ValueError):
            path = path.relative_to(Path.cwd())
        self._announce(f"{path} changed")
        supervisor.roll()

    def _print_addresses(self, nodes: tuple[PlannedNode, ...]) -> None:
        rows = [("node", "pages", "raft", "data")]
        for node in nodes:
            folder = node.folder
            with suppress(ValueError):
                folder = folder.relative_to(Path.cwd())
            rows.append((node.name, node.url, " ".join(node.addresses.values()), str(folder)))
        for number, line in enumerate(table(rows)):
            colour = COLOURS[(number - 1) % len(COLOURS)] if number else None
            self.stdout.write(self._coloured(line, colour))
        self.stdout.write("Quit with Ctrl-C.\n")
        self.stdout.flush()

    def _show(self, name: str, line: str) -> None:
        node = self._nodes.get(name)
        colour = COLOURS[(node.number - 1) % len(COLOURS)] if node else None
        self.stdout.write(f"{self._coloured(f'{name:<7}', colour)} | {line}")
        self.stdout.flush()

    def _announce(self, text: str) -> None:
        self.stdout.write(f"{self._coloured('cluster', None, bold=True)} | {text}")
        self.stdout.flush()

    def _coloured(self, text: str, colour: str | None, *, bold: bool = False) -> str:
        if not self._colour or (colour is None and not bold):
            return text
        return colorize(text, opts=("bold",) if bold else (), **({"fg": colour} if colour else {}))


def _settings_of(node: PlannedNode, alias: str) -> dict[str, Any]:
    """What the node's environment variable says: this process's own, with the node's place merged over it."""
    settings: dict[str, Any] = dict(read_environment(alias))
    merge(settings, node.settings[alias])
    return settings


def _configs(node: PlannedNode) -> dict[str, NodeConfig]:
    configs = {}
    for alias in node.settings:
        settings = copy.deepcopy(connections.settings[alias])
        merge(settings, _settings_of(node, alias))
        settings[MERGED] = True
        config = configure(alias, settings).node
        configs[alias] = dataclasses.replace(config, timeout=PROBE_TIMEOUT)
    return configs


def _manage() -> list[str]:
    """How this command was started, up to its own name: ``manage.py`` or ``-m django``."""
    arguments = [str(argument) for argument in get_child_arguments()[1:]]
    own = arguments.index("runcluster")
    return [argument for argument in arguments[:own] if not argument.startswith(("-W", "-X"))]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(PROBE_TIMEOUT)
        return probe.connect_ex((LOOPBACK, port)) == 0
