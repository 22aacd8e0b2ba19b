"""PostgreSQL to be measured against: a primary and two standbys, every commit flushed by one of them too."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests.process.cluster import wait_until
from tests.support.ports import free_ports

PACKAGE = "postgresql-15"
USER = "benchmark"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "synchronous_standby_names": "ANY 1 (*)",
    "synchronous_commit": "on",
    "fsync": "on",
}
"""All others are PostgreSQL's own defaults."""
_STREAMING = "select count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'quorum'"


class PostgresqlMissing(Exception):
    """It cannot be had here; the text says why."""


class PostgresqlGroup:
    """A primary and its standbys in a folder of their own.

    Whoever makes one calls :meth:`close`, also when :meth:`start` failed.

    Servers refuse to run as root: then theirs is the user ``postgres``, or else ``nobody``. They are stopped by the
    kernel when this process dies without a word.
    """

    def __init__(self, parent: Path, standbys: int = 2) -> None:
        self._programs = find_programs()
        self._as_user = other_user() if os.geteuid() == 0 else None
        self._password = secrets.token_hex(16)
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports = free_ports(1 + standbys)
        self.folder = self._make_folder(parent)
        self.version = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a client of the primary needs: libpq's own variables."""
        return self._client(self._ports[0])

    def start(self) -> None:
        """Return when all standbys stream. Raises PostgresqlMissing with the server's words."""
        primary = self.folder / "primary"
        password = self.folder / "password"
        self._write(password, self._password)
        self._run(
            "initdb",
            *(f"--pgdata={primary}", f"--username={USER}", f"--pwfile={password}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--no-instructions"),
        )
        self._serve(primary, self._ports[0])
        self._wait_for("select 1", 1)
        for place, port in enumerate(self._ports[1:], 1):
            standby = self.folder / f"standby{place}"
            self._run("pg_basebackup", f"--pgdata={standby}", "--write-recovery-conf", "--checkpoint=fast")
            self._serve(standby, port)
        self._wait_for(_STREAMING, len(self._ports) - 1)
        self.version = str(self._ask("show server_version"))

    def close(self) -> None:
        """Stop the servers, the primary first, and remove their files."""
        for server in self._servers:
            for number, patience in ((signal.SIGINT, 20), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
                server.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(patience)
                    break
        self._servers.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_folder(self, parent: Path) -> Path:
        """Below ``parent``, beside the others' files, if the servers' user gets there; else among temporary files."""
        for place in (parent, Path(tempfile.gettempdir())):
            folder = Path(tempfile.mkdtemp(prefix="postgresql-", dir=place))
            if self._as_user is None:
                return folder
            os.chown(folder, self._as_user.pw_uid, self._as_user.pw_gid)
            if subprocess.run([*self._prefix(), "test", "-w", folder], check=False).returncode == 0:
                return folder
            folder.rmdir()
        raise PostgresqlMissing(f"its user has no way to {parent} nor to {tempfile.gettempdir()}")

    def _write(self, path: Path, text: str) -> None:
        path.touch(0o600)
        path.write_text(text)
        if self._as_user is not None:
            os.chown(path, self._as_user.pw_uid, self._as_user.pw_gid)

    def _prefix(self) -> list[str]:
        words = ["setpriv", "--pdeathsig", "INT"]
        if self._as_user is not None:
            words += [f"--reuid={self._as_user.pw_uid}", f"--regid={self._as_user.pw_gid}", "--clear-groups"]
        return words

    def _client(self, port: int) -> dict[str, str]:
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(port),
            "PGUSER": USER,
            "PGPASSWORD": self._password,
            "PGDATABASE": "postgres",
        }

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [*self._prefix(), self._programs / program, *words],
            env={**os.environ, **self.environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode != 0:
            raise PostgresqlMissing(f"{program}: {done.stderr.strip()}")

    def _serve(self, data: Path, port: int) -> None:
        alone = {"synchronous_standby_names": ""} if len(self._ports) == 1 else {}
        settings = [f"--{name}={value}" for name, value in {**SETTINGS, **alone, "port": port}.items()]
        with (self.folder / f"{data.name}.log").open("wb") as log:
            self._servers.append(
                subprocess.Popen(
                    [*self._prefix(), self._programs / "postgres", "-D", data, *settings],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the benchmark, which then stops its servers
                )
            )

    def _wait_for(self, question: str, answer: object) -> None:
        """Until the primary gives that answer."""
        import psycopg

        def probe() -> bool:
            if any(server.poll() is not None for server in self._servers):
                logs = "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))
                raise PostgresqlMissing(f"a server has ended:\n{logs}")
            with contextlib.suppress(psycopg.OperationalError):
                return self._ask(question) == answer
            return False

        try:
            wait_until(question, probe, 60)
        except AssertionError as error:
            raise PostgresqlMissing(str(error)) from None

    def _ask(self, question: str) -> object:
        import psycopg

        client = self._client(self._ports[0])
        with psycopg.connect(
            host=client["PGHOST"],
            port=client["PGPORT"],
            user=USER,
            password=self._password,
            dbname=client["PGDATABASE"],
            connect_timeout=5,
        ) as connection:
            row = connection.execute(question).fetchone()
            return row[0] if row else None


def other_user() -> pwd.struct_passwd:
    """Whom the servers run as when we are root."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresqlMissing("servers refuse to run as root, and there is neither a user postgres nor nobody")


def find_programs() -> Path:
    """The folder of initdb, postgres and pg_basebackup: version 15, else the newest; installed when missing."""
    if find_spec("psycopg") is None:
        raise PostgresqlMissing("its driver is not installed (psycopg, extra `bench`)")
    if shutil.which("setpriv") is None:
        raise PostgresqlMissing("there is no setpriv (util-linux) to run its servers with")
    return installed_programs() or install()


def installed_programs() -> Path | None:
    """Debian's folder, or that of the ``initdb`` on the path."""
    found = {
        int(match[1]): folder
        for folder in Path("/usr/lib/postgresql").glob("*/bin")
        if (match := re.fullmatch(r"(\d+)", folder.parent.name)) and (folder / "initdb").exists()
    }
    if found:
        return found.get(15) or found[max(found)]
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def install() -> Path:
    """Have Debian install it."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PostgresqlMissing(f"it is not installed (apt-get install {PACKAGE})")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = None
    for words in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", PACKAGE]):
        done = subprocess.run(
            ["apt-get", *words], env=environment, capture_output=True, text=True, check=False, timeout=600
        )
    found = installed_programs()
    if found is None:
        raise PostgresqlMissing(f"apt-get install {PACKAGE}: {done.stderr.strip() if done else ''}")
    return found
