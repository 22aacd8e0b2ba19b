"""Backups and the archive in an object store, through django-storages, against a server that speaks S3."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from django_raftsqlite.backups.keeping import choose, fetch, find_backups, prune
from django_raftsqlite.backups.moments import Log
from django_raftsqlite.backups.places import PlaceError, StoragePlace
from django_raftsqlite.backups.taking import take_backup
from django_raftsqlite.node.api import ArchiveConfig, NodeConfig
from django_raftsqlite.node.registry import close_node, open_node
from tests.support.nodes import eventually, write

WAIT = 60.0
"""Seconds. The server, its client and the node share one interpreter, and a machine that is busy."""

pytest.importorskip("moto.server")
pytest.importorskip("storages.backends.s3")

# They are the servers' and the clients' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def place(endpoint: str, request: pytest.FixtureRequest) -> StoragePlace:
    import boto3
    from storages.backends.s3 import S3Storage

    bucket = f"bucket-{abs(hash(request.node.name))}"
    options = {
        "endpoint_url": endpoint,
        "access_key": "key",
        "secret_key": "secret",
        "region_name": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    client.close()
    return StoragePlace(S3Storage(bucket_name=bucket, **options), "raftsqlite/default", "S3")


@pytest.fixture
def config(tmp_path: Path, place: StoragePlace) -> Iterator[NodeConfig]:
    config = NodeConfig(
        name=tmp_path / "db.sqlite3",
        address="localhost",
        peers=("localhost",),
        durable=False,
        archive=ArchiveConfig(lambda: place, 0.1, 10**6),
    )
    yield config
    close_node(config.name)


def test_a_backup_goes_there_and_comes_back(config: NodeConfig, place: StoragePlace, tmp_path: Path) -> None:
    """Larger than one part of an upload; it is listed, checked, pruned."""
    node = open_node(config)
    write(node, "CREATE TABLE t (x)")
    for _ in range(9):
        write(node, "INSERT INTO t VALUES (randomblob(1000000))")
    first = take_backup("default", config, place)
    second = take_backup("default", config, place, compress=True)
    assert first.size > 8 * 2**20
    assert {each.manifest for each in find_backups(place)} == {first, second}
    fetch(place, second, tmp_path / "fetched")
    assert (tmp_path / "fetched").stat().st_size == second.database_size
    newest = choose(find_backups(place), place, None)
    prune(place, "default", 1)
    assert [each.manifest for each in find_backups(place)] == [newest]


def test_the_log_is_archived_there(config: NodeConfig, place: StoragePlace) -> None:
    """From the entry that began the archive on, without a gap."""
    node = open_node(config)
    write(node, "CREATE TABLE t (x)")
    # What was written before the archive began is not in it, and counts as archived.
    eventually(lambda: node.status()["archive"]["index"] is not None, "the archive begins", WAIT)
    for number in range(50):
        write(node, "INSERT INTO t VALUES (?)", number)
    status = node.status()

    def archived() -> bool:
        return (node.status()["archive"]["index"] or 0) >= status["applied_index"]

    eventually(archived, "the log is archived", WAIT)
    told = node.status()["archive"]
    indexes = [index for index, _, _ in Log(place, told["name"], []).entries(told["begun"])]
    assert indexes == list(range(told["begun"], indexes[-1] + 1))
    assert indexes[-1] >= status["applied_index"]


def test_what_is_taken_stays_and_what_is_not_there_is_told(place: StoragePlace) -> None:
    """As in a folder."""
    place.write("f/a", io.BytesIO(b"first"), lambda _: None)
    with pytest.raises(PlaceError, match="exists already"):
        place.write("f/a", io.BytesIO(b"second"), lambda _: None)
    assert (place.names("f"), place.folders(), place.names("g")) == (["a"], ["f"], [])
    with pytest.raises(PlaceError, match="nowhere"):
        place.open("nowhere").read()
    place.delete("nowhere")
