"""The wheel in an empty environment: startproject, the ENGINE line, migrate, runserver, a login to the admin.

Whatever goes wrong is an exception, and exit status 1.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0
PASSWORD = "only for this test"
IN_SDIST = (
    "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "docs/index.md",
    "deploy/docker/compose.yaml", "testproject/manage.py", "tests/conftest.py",
    "tests/unit/test_layers.py", "django_raftsqlite/py.typed",
)  # fmt: skip
IN_WHEEL = (
    "django_raftsqlite/py.typed", "django_raftsqlite/base.py", "django_raftsqlite/management/commands/raft.py",
    "django_raftsqlite/templates/django_raftsqlite/page.html", "django_raftsqlite/static/django_raftsqlite/raft.js",
)  # fmt: skip


def main(dist: Path) -> None:
    """Look into both files, then use the wheel."""
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    look_into(wheel, sdist)
    with tempfile.TemporaryDirectory(prefix="raftsqlite-package-") as name:
        use(wheel.resolve(), Path(name))
    print(f"{wheel.name} and {sdist.name}: complete; installed, migrated, served and logged in")


def look_into(wheel: Path, sdist: Path) -> None:
    """What belongs there is there, and nothing else."""
    with tarfile.open(sdist) as archive:
        in_sdist = {member.partition("/")[2] for member in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    assert len(tests) > 100
    missing = [name for name in (*IN_SDIST, *tests) if name not in in_sdist] + [
        name for name in IN_WHEEL if name not in in_wheel
    ]
    assert not missing, f"not packed: {missing}"
    strange = {name.partition("/")[0] for name in in_wheel if ".dist-info/" not in name} - {"django_raftsqlite"}
    assert not strange, f"in the wheel, and nobody's to install: {strange}"
    unwanted = [name for name in in_sdist if re.search(r"(^|/)(\.venv|__pycache__|_build)(/|$)|\.sqlite3", name)]
    assert not unwanted, f"in the sdist: {unwanted}"


def use(wheel: Path, folder: Path) -> None:
    """Everything that the README's first steps say, in an environment that has nothing."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "DJANGO", "RAFTSQLITE", "VIRTUAL"))
    }
    programs = folder / "venv" / "bin"

    def run(*command: str, cwd: Path = folder, **extra: str) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=environment | extra, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run(sys.executable, "-m", "venv", str(folder / "venv"))
    run(str(programs / "pip"), "install", "--quiet", "--disable-pip-version-check", str(wheel))
    run(str(programs / "django-admin"), "startproject", "site1")
    site = folder / "site1"
    settings = site / "site1" / "settings.py"
    text = settings.read_text()
    assert text.count("django.db.backends.sqlite3") == 1
    settings.write_text(text.replace("django.db.backends.sqlite3", "django_raftsqlite"))

    python = str(programs / "python")
    run(python, "-W", "error", "manage.py", "check", "--database", "default", cwd=site)
    run(python, "manage.py", "migrate", cwd=site)
    run(
        *(python, "manage.py", "createsuperuser", "--noinput", "--username", "admin", "--email", "a@example.com"),
        cwd=site,
        DJANGO_SUPERUSER_PASSWORD=PASSWORD,
    )
    with serving(python, site, environment) as address:
        log_in(address)


@contextlib.contextmanager
def serving(python: str, site: Path, environment: dict[str, str]) -> Iterator[str]:
    """``manage.py runserver`` on a free port; its address. It ends with the block, and its reloader with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = site / "runserver.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [python, "manage.py", "runserver", str(port)],
            cwd=site,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/admin/login/", server)
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        print(log.read_text(), file=sys.stderr)
        raise
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            raise


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until it answers."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except (urllib.error.URLError, ConnectionError) as error:
            assert not isinstance(error, urllib.error.HTTPError), f"{url}: {error}"
            assert server.poll() is None, "runserver ended"
            assert time.monotonic() < deadline, f"{url}: {error}"
            time.sleep(0.1)
        else:
            return


def log_in(address: str) -> None:
    """Through the form, to the admin's index: it reads and writes users and sessions."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    with opener.open(f"{address}/admin/login/?next=/admin/", timeout=DEADLINE) as answer:
        form = answer.read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert token, form
    fields = {"csrfmiddlewaretoken": token[1], "username": "admin", "password": PASSWORD, "next": "/admin/"}
    data = urllib.parse.urlencode(fields).encode()
    with opener.open(f"{address}/admin/login/?next=/admin/", data, timeout=DEADLINE) as answer:
        page = answer.read().decode()
        assert answer.url == f"{address}/admin/", answer.url
    assert "Site administration" in page, page


if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored, and all their children: here it ends the server.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(Path(sys.argv[1]))
