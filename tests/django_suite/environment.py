"""What a run needs: an interpreter, a source distribution with its tests, and a virtual environment with our package.

All of it lives in the git-ignored ``.cache/django-suite/`` and is made once; a warm cache needs no network.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "django-suite"

SERIES = ("5.2", "6.0", "6.1")
"""The series of Django that this package supports; their newest patch releases are what is run."""

# Requirements of Django's suite that need a compiler or a browser, or are only about the looks of generated code.
LEFT_OUT = frozenset({"pylibmc", "pywatchman", "selenium", "black", "geoip2", "colorama"})


class Missing(Exception):
    """Something that this machine does not have; the text says what was looked for."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that runs: ``version`` is (major, minor)."""

    path: Path
    version: tuple[int, int]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


def default_python(django: str) -> tuple[int, int]:
    """The oldest Python of our own that the version of Django supports."""
    return (3, 11) if django.startswith("5.") else (3, 12)


def find_interpreter(wanted: str | None, django: str) -> Interpreter:
    """Python ``wanted`` ("3.12"), or one that fits ``django``. Raises Missing.

    Looks on PATH and into pyenv's folder, and runs what it finds: pyenv's shims exist for versions that are off.
    """
    if wanted:
        versions = [tuple(map(int, wanted.split(".")))[:2]]
    else:
        major, least = default_python(django)
        versions = [(major, minor) for minor in range(least, 15)]
    for version in versions:
        name = ".".join(map(str, version))
        candidates: list[str | Path | None] = [shutil.which(f"python{name}"), shutil.which("python3")]
        candidates += sorted(Path.home().glob(f".pyenv/versions/{name}*/bin/python3"))
        for candidate in candidates:
            if candidate and _version(Path(candidate)) == version:
                return Interpreter(Path(candidate), version)  # type: ignore[arg-type]
    tried = ", ".join(".".join(map(str, version)) for version in versions)
    raise Missing(f"Django {django} needs Python {tried}: none found on PATH or in ~/.pyenv/versions")


def _version(path: Path) -> tuple[int, ...] | None:
    code = "import sys, venv; print(*sys.version_info[:2])"
    try:
        found = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return None
    return tuple(map(int, found.stdout.split())) if found.returncode == 0 else None


def run(*command: str | Path) -> None:
    """Run a command; raises Missing with the end of what it printed when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise Missing(f"{' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}")


class Environment:
    """A virtual environment named ``name`` for one interpreter."""

    def __init__(self, interpreter: Interpreter, name: str) -> None:
        self.interpreter = interpreter
        self.folder = CACHE / f"py{interpreter.name}-{name}"
        self.python = self.folder / "bin" / "python"

    def make(self) -> None:
        """Make it, if need be, with what building our package takes."""
        if not (self.folder / ".made").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            run(self.interpreter.path, "-m", "venv", self.folder)
            self.pip("install", "hatchling", "editables")
            (self.folder / ".made").touch()

    def pip(self, verb: str, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *arguments)

    def sdist(self, project: str, version: str, *, refresh: bool = False, name: str = "") -> Path:
        """The unpacked source distribution of a version; for "6.1.*" the newest in the cache or, else, on PyPI.

        ``refresh``: look on PyPI in any case. ``name``: what the archive is called in place of the project.
        """
        folder = CACHE / "sdists"
        name = f"{name or project.lower()}-{version}"
        if not refresh:
            found = _unpacked(folder, name)
            if found:
                return found
        downloads = folder / "downloads"
        wanted = f"{project}=={version}"
        self.pip("download", "--no-deps", "--no-binary", ":all:", "--dest", downloads, wanted)
        for archive in downloads.glob("*.tar.gz"):
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
            archive.unlink()
        found = _unpacked(folder, name)
        if found is None:
            raise Missing(f"the source distribution of {wanted} has no folder of its name")
        return found

    def install(self, requirements: Iterable[str]) -> None:
        """Install from PyPI, unless that was done before."""
        text = "\n".join(requirements)
        stamp = self.folder / ".requirements"
        if not stamp.exists() or stamp.read_text() != text:
            self.pip("install", *text.splitlines())
            stamp.write_text(text)

    def install_package(self) -> None:
        """Install our package as users do, not as a link: what lies beside it must not be importable."""
        digest = hashlib.sha256()
        files = [ROOT / "pyproject.toml", *sorted((ROOT / "django_raftsqlite").rglob("*"))]
        for path in files:
            if path.is_file() and path.suffix != ".pyc":
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
        stamp = self.folder / ".package"
        if not stamp.exists() or stamp.read_text() != digest.hexdigest():
            self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", ROOT)
            stamp.write_text(digest.hexdigest())


def _unpacked(folder: Path, name: str) -> Path | None:
    found = sorted(
        (path for path in folder.glob(name) if path.is_dir()),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)],
    )
    return found[-1] if found else None


def requirements_of(source: Path) -> list[str]:
    """What Django's suite can use, without what :data:`LEFT_OUT` names."""
    lines = (source / "tests" / "requirements" / "py3.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    return [line for line in wanted if re.split(r"[ ;<>=!]", line)[0] not in LEFT_OUT]


def django_environment(django: str, python: str | None, *, refresh: bool = False) -> tuple[Environment, Path, str]:
    """Everything for one version of Django: the environment, the unpacked source, and the exact version."""
    numbers = django.split(".")
    environment = Environment(find_interpreter(python, django), f"django{'.'.join(numbers[:2])}")
    environment.make()
    series = len(numbers) == 2
    source = environment.sdist("Django", f"{django}.*" if series else django, refresh=refresh and series)
    version = source.name.removeprefix("django-")
    environment.install([f"Django=={version}", *own_dependencies(), *requirements_of(source)])
    environment.install_package()
    return environment, source, version


def own_dependencies() -> list[str]:
    """What our package needs, but for Django itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [line for line in project["dependencies"] if not line.lower().startswith("django")]
