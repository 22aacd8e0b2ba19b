"""The files in deploy/: each is well-formed, and what it tells Django and gunicorn is right."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_raftsqlite.configuration import configure
from django_raftsqlite.management.commands import raft

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def compose() -> dict[str, Any]:
    services = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]
    assert len(services) == 7
    return dict(services)


def containers(pod: str) -> list[dict[str, Any]]:
    """Those of a pod, their variables as Kubernetes fills them in."""
    kinds = {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes/statefulset.yaml").read_text())}
    found = kinds["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    for container in found:
        for variable in container["env"]:
            value = variable.get("value", "")
            variable["value"] = value.replace("$(POD)", pod).replace("$(NAMESPACE)", "shop")
    return list(found)


def fly(group: str, folder: Path) -> dict[str, str]:
    """What start.sh gives to gunicorn on the machine of a process group."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in (("chown", "exit 0"), ("setpriv", 'printf "%s\\n" "$RAFTSQLITE_DEFAULT"')):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["sh", str(DEPLOY / "fly" / "start.sh")],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "FLY_APP_NAME": "site", "FLY_PROCESS_GROUP": group},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return {"RAFTSQLITE_DEFAULT": done.stdout}


def environments(folder: Path) -> Iterator[tuple[str, str]]:
    """``RAFTSQLITE_DEFAULT`` of every process that the files start, and where it is from."""
    for name, service in compose().items():
        yield f"compose {name}", service["environment"]["RAFTSQLITE_DEFAULT"]
    for pod in ("raft-0", "raft-2"):
        for container in containers(pod):
            (text,) = [each["value"] for each in container["env"] if each["name"] == "RAFTSQLITE_DEFAULT"]
            yield f"{pod} {container['name']}", text
    for group in tomllib.loads((DEPLOY / "fly" / "fly.toml").read_text())["processes"]:
        yield f"fly {group}", fly(group, folder)["RAFTSQLITE_DEFAULT"]
    for line in (DEPLOY / "systemd" / "environment.example").read_text().splitlines():
        if line.startswith("RAFTSQLITE_DEFAULT="):
            yield "systemd", shlex.split(line)[0].partition("=")[2]


def commands() -> Iterator[tuple[str, list[str]]]:
    """What every process is started by, without the path of its interpreter."""
    for name, service in compose().items():
        yield f"compose {name}", service["command"]
    for container in containers("raft-1"):
        yield f"pod {container['name']}", container["command"]
    for unit in sorted((DEPLOY / "systemd").glob("*.service")):
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        program, *words = shlex.split(line)
        yield unit.name, [Path(program).name, *words]
    for file in ("docker/Dockerfile", "fly/Dockerfile"):
        (line,) = re.findall(r"^CMD (.*)$", (DEPLOY / file).read_text(), re.MULTILINE)
        yield file, json.loads(line)
    script = (DEPLOY / "fly" / "start.sh").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^exec setpriv .*?(gunicorn .*)$", script, re.MULTILINE)
    yield "start.sh", shlex.split(line)


def test_every_process_is_given_settings_without_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAFTSQLITE_DEFAULT", raising=False)
    seen = []
    for where, text in environments(tmp_path):
        # The paths are those of a machine that this one is not.
        here = re.sub(r'"(/[^"]*)"', lambda match: json.dumps(str(tmp_path) + match[1]), text)
        settings = json.loads(here)
        paths = [settings["NAME"], *settings["OPTIONS"]["tls"].values()]
        for path in map(Path, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in map(Path, paths[1:]):
            path.touch()
        node = configure("default", {"ENGINE": "django_raftsqlite", **settings}).node
        if node.discovery is None:
            assert len(node.peers) == 3, where
            assert node.address in node.peers, where
        else:
            assert (node.discovery.expect, node.address[:4]) == (3, "raft"), where
        assert node.tls is not None, where
        seen.append((where, node.address))
    assert len(seen) == 7 + 4 + 3 + 1
    assert len({address for where, address in seen if where.startswith("fly")}) == 3
    assert len({address for where, address in seen if where.startswith("compose node")}) == 3


def test_every_command_is_one_that_exists() -> None:
    seen = set()
    for where, (program, *words) in commands():
        seen.add(program)
        if words[:2] == ["manage.py", "raft"]:
            assert program == "python", where
            raft.Command().create_parser("manage.py", "raft").parse_args(words[2:])
        elif program == "sh":
            assert (DEPLOY / "fly" / words[0]).is_file(), where
        else:
            assert program == "gunicorn" or words == ["manage.py", "migrate"], where
    assert seen == {"python", "gunicorn", "sh"}


def test_gunicorn_takes_each_of_its_command_lines(tmp_path: Path) -> None:
    lines = sorted({tuple(words) for _, (program, *words) in commands() if program == "gunicorn"})
    assert lines
    for words in lines:
        done = subprocess.run(
            [sys.executable, "-m", "gunicorn", "--check-config", *words],
            cwd=ROOT / "testproject",
            env={**os.environ, "TESTPROJECT_DATA": str(tmp_path), "DJANGO_SETTINGS_MODULE": "project.settings"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"


def test_what_shares_a_node_shares_its_volume() -> None:
    services = compose()
    for number in (1, 2, 3):
        node, web = services[f"node{number}"], services[f"web{number}"]
        assert node["volumes"] == web["volumes"]
        assert f"data{number}:/srv/data" in node["volumes"]
    first, second = containers("raft-0")
    assert first["volumeMounts"] == second["volumeMounts"]


def test_members_are_found_before_they_are_ready_and_started_together() -> None:
    kinds = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "statefulset.yaml").read_text()))
    (headless,) = [each for each in kinds if each["kind"] == "Service" and each["spec"].get("clusterIP") == "None"]
    (stateful,) = [each for each in kinds if each["kind"] == "StatefulSet"]
    assert headless["spec"]["publishNotReadyAddresses"] is True
    service, (port,) = headless["metadata"]["name"], headless["spec"]["ports"]
    for container in containers("raft-1"):
        (text,) = [each["value"] for each in container["env"] if each["name"] == "RAFTSQLITE_DEFAULT"]
        options = json.loads(text)["OPTIONS"]
        assert options["peers"] == f"dns+srv://_{port['name']}._tcp.{service}.shop.svc.cluster.local?expect=3"
        assert options["node"] == f"raft-1.{service}.shop.svc.cluster.local:{port['port']}"
    assert stateful["spec"]["replicas"] == 3
    assert stateful["spec"]["serviceName"] == headless["metadata"]["name"]
    assert stateful["spec"]["podManagementPolicy"] == "Parallel"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in (DEPLOY / "systemd").glob("shop-*"):
        text = unit.read_text().replace("/srv/shop/venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text.replace("/srv/shop/venv/bin/gunicorn", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "shop-" in line]
    assert complaints == [], done.stderr
