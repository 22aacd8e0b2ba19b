"""Settings: what is right becomes a NodeConfig, what is wrong an error that says where, what and what instead."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_raftsqlite.backups.places import OpenStorage
from django_raftsqlite.configuration import TEST, configure, find_problems
from django_raftsqlite.dbapi.freshness import Freshness
from django_raftsqlite.environment import environment_variable, merge_environment
from django_raftsqlite.functions import register_django_functions
from django_raftsqlite.node.api import ArchiveConfig, NodeConfig, TLSFiles
from django_raftsqlite.options.members import LOCALHOST
from django_raftsqlite.signals import Sender

PEERS = ["127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"]
SECRET = "a secret of some length"


def not_callable_here() -> None:
    """Named by a test as a callable of this module."""


NOT_CALLABLE = 3


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Makes ``DATABASES["default"]`` as Django completes it; keyword arguments are its OPTIONS."""

    def make(**options: Any) -> dict[str, Any]:
        return {"ENGINE": "django_raftsqlite", "NAME": tmp_path / "db.sqlite3", "OPTIONS": options, "TEST": {}}

    return make


def group(**options: Any) -> dict[str, Any]:
    return {"node": PEERS[0], "peers": PEERS, "secret": SECRET, **options}


def message_of(settings_dict: dict[str, Any], alias: str = "default") -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        configure(alias, settings_dict)
    return str(caught.value)


def test_empty_options_are_a_group_of_one_that_opens_no_port(settings: Any, tmp_path: Path) -> None:
    configuration = configure("default", settings())
    assert configuration.node == NodeConfig(
        name=tmp_path / "db.sqlite3",
        address=LOCALHOST,
        peers=(LOCALHOST,),
        registrars=(register_django_functions,),
        observers=(Sender("default"),),
    )
    assert configuration.reads == Freshness("local", max_staleness=5.0)
    assert (configuration.transaction_mode, configuration.init_commands) == (None, ())


def test_every_option_reaches_the_node(settings: Any) -> None:
    configuration = configure(
        "default",
        settings(
            **group(
                timeout=2,
                lease_timeout=3,
                election_timeout=0.8,
                apply_timeout=7,
                max_transaction_bytes=2**30,
                wal_limit=2**20,
                log_entries=500,
                log_bytes=2**22,
                snapshot_rate=2**16,
                on_divergence="stop",
                archive={"storage": "staticfiles", "interval": 2, "hold": 5},
                mode="0660",
                host=False,
                reads="bounded",
                max_staleness=2,
                transaction_mode="immediate",
                init_command=" PRAGMA cache_size=-20000; ; PRAGMA mmap_size=0;",
                functions=f"{__name__}.not_callable_here",
            )
        ),
    )
    node = configuration.node
    assert (node.address, node.peers, node.secret) == (PEERS[0], tuple(PEERS), SECRET)
    assert (node.timeout, node.lease_timeout, node.election_timeout) == (2.0, 3.0, 0.8)
    assert node.fixed_election_timeout
    assert (node.mode, node.host) == (0o660, False)
    assert (node.log_entries, node.log_bytes, node.snapshot_rate) == (500, 2**22, 2**16)
    assert node.on_divergence == "stop"
    assert node.archive == ArchiveConfig(OpenStorage("staticfiles", "default"), 2.0, 5)
    assert str(node.archive.open()) == 'raftsqlite/default/ in STORAGES["staticfiles"]'
    assert (node.apply_timeout, node.max_transaction_bytes, node.wal_limit) == (7.0, 2**30, 2**20)
    assert node.registrars == (register_django_functions, not_callable_here)
    assert configuration.reads == Freshness("bounded", max_staleness=2.0)
    assert configuration.transaction_mode == "IMMEDIATE"
    assert configuration.init_commands == ("PRAGMA cache_size=-20000", "PRAGMA mmap_size=0")


def test_none_is_the_default_of_every_option(settings: Any) -> None:
    names = ["node", "peers", "secret", "tls", "reads", "timeout", "transaction_mode", "init_command", "functions"]
    names += ["lease_timeout", "election_timeout", "apply_timeout", "max_transaction_bytes", "wal_limit"]
    names += ["mode", "host", "max_staleness"]
    names += ["log_entries", "log_bytes", "snapshot_rate", "on_divergence", "archive"]
    assert configure("default", settings(**dict.fromkeys(names))) == configure("default", settings())


def test_a_name_may_be_text_and_becomes_absolute(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert configure("default", {**settings(), "NAME": "db.sqlite3"}).node.name == tmp_path / "db.sqlite3"


@pytest.mark.parametrize("mode", [0o600, "0600", "600", "0o600"])
def test_a_mode_may_be_written_as_number_or_octal_text(settings: Any, mode: object) -> None:
    assert configure("default", settings(mode=mode)).node.mode == 0o600


@pytest.mark.parametrize("peers", [PEERS, ["localhost:7101", "[::1]:7102", "127.8.0.1:7103"]])
def test_a_secret_is_enough_between_loopback_addresses(settings: Any, peers: list[str]) -> None:
    assert configure("default", settings(node=peers[0], peers=peers, secret=SECRET)).node.tls is None


def test_tls_is_enough_between_any_addresses(settings: Any, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "authority")}
    for path in files.values():
        path.touch()
    peers = ["node1.example:7101", "10.0.0.2:7101", "[2001:db8::1]:7101"]
    node = configure("default", settings(node=peers[0], peers=peers, tls=files)).node
    assert node.tls == TLSFiles(files["certificate"], files["key"], (files["authority"],))
    assert node.secret is None


def test_an_authority_may_be_several(settings: Any, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("certificate", "key", "old", "new")}
    for path in paths.values():
        Path(path).touch()
    tls = {"certificate": paths["certificate"], "key": paths["key"], "authority": [paths["old"], paths["new"]]}
    node = configure("default", settings(**group(tls=tls))).node
    assert node.tls is not None
    assert node.tls.authority == (Path(paths["old"]), Path(paths["new"]))


def test_a_secret_may_be_in_a_file_or_in_the_environment(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """White space around it does not count, since editors leave some."""
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    monkeypatch.setenv("A_SECRET", f" {SECRET}")
    for given in ({"file": path}, {"file": str(path)}, {"env": "A_SECRET"}, [SECRET], ({"file": str(path)},)):
        assert configure("default", settings(**group(secret=given))).node.secret == SECRET
    configuration = configure("default", settings(**group(secret=[{"file": path}, "another secret of some length"])))
    assert (configuration.node.secret, configuration.node.second_secret) == (SECRET, "another secret of some length")
    assert configuration.secret_files == (path,)


def test_a_secret_that_cannot_be_had_is_named_and_not_shown(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    short, binary, large = tmp_path / "short", tmp_path / "binary", tmp_path / "large"
    short.write_text("hidden5")
    binary.write_bytes(b"hidden5\xff" * 5)
    large.write_bytes(b"hidden5" * 2000)
    monkeypatch.setenv("A_SECRET", "hidden5")
    for given, where, text in [
        ({"file": tmp_path / "none"}, '["secret"]["file"]', "No such file"),
        ({"file": tmp_path}, '["secret"]["file"]', "Is a directory"),
        ({"file": binary}, '["secret"]["file"]', "is not text in UTF-8"),
        ({"file": large}, '["secret"]["file"]', "larger than 4096"),
        ({"file": short}, '["secret"]["file"]', f"'{short}', which has 7 characters"),
        ({"file": ""}, '["secret"]["file"]', "the path of a file"),
        ({"file": 7}, '["secret"]["file"]', "is an integer"),
        ({"env": "A_SECRET"}, '["secret"]["env"]', "'A_SECRET', which has 7 characters"),
        ({"env": "NO_SECRET"}, '["secret"]["env"]', "'NO_SECRET', and there is no such variable"),
        ({"env": 7}, '["secret"]["env"]', "is an integer"),
        ({"fil": "x"}, '["secret"]', "Did you mean 'file'?"),
        ({"file": short, "env": "A_SECRET"}, '["secret"]', "one of them"),
        ({}, '["secret"]', "one of them"),
        ([], '["secret"]', "a list of 0"),
        ([SECRET] * 3, '["secret"]', "a list of 3"),
        ([SECRET, SECRET], '["secret"]', "the same secret twice"),
        ([SECRET, {"file": tmp_path / "none"}], '["secret"][1]["file"]', "No such file"),
    ]:
        (problem,) = find_problems("default", settings(**group(secret=given)))
        assert problem.id == "E004"
        assert str(problem).startswith(f'DATABASES["default"]["OPTIONS"]{where} '), problem
        assert text in str(problem) and "hidden5" not in str(problem)


def test_secrets_are_in_no_repr(settings: Any) -> None:
    configuration = configure("default", settings(**group(secret=[SECRET, "another secret of some length"])))
    assert SECRET not in repr(configuration) and "another secret" not in repr(configuration)


def test_a_single_peer_needs_no_secret(settings: Any) -> None:
    node = configure("default", settings(node="node1.example:7101", peers=["node1.example:7101"])).node
    assert node.peers == ("node1.example:7101",)


OPTION = 'DATABASES["default"]["OPTIONS"]'

WRONG_OPTIONS = [
    # options, where, what was found, what to write
    ({"nodes": 1}, '["nodes"]', "is not an option of this backend", "Did you mean 'node'?"),
    ({"zzz": 1}, '["zzz"]', "is not an option of this backend", "Write one of node, peers, join, role"),
    ({"check_same_thread": False}, '["check_same_thread"]', "is not an option", "belongs to the sqlite3 module"),
    ({"peers": PEERS}, '["node"]', 'is missing, although "peers" is given', "the address of this node"),
    ({"join": PEERS}, '["node"]', 'is missing, although "join" is given', "the address of this node"),
    (
        {"node": "127.0.0.1:7109", "peers": PEERS, "join": PEERS, "secret": SECRET},
        '["join"]',
        'is given, and so is "peers"',
        "for a node that comes later",
    ),
    ({"node": PEERS[0], "join": [], "secret": SECRET}, '["join"]', "is empty", "one member or more"),
    ({"node": PEERS[0], "join": "x", "secret": SECRET}, '["join"]', "is a string", "one member or more"),
    ({"node": PEERS[0], "join": ["x"], "secret": SECRET}, '["join"]', "has the member 'x'", 'Write "host:port"'),
    ({"node": PEERS[0], "join": PEERS[:1], "secret": SECRET}, '["join"]', "names this node itself", "of a member"),
    ({"node": PEERS[0], "join": PEERS[1:]}, '["secret"]', "would trust whoever connects", "tls"),
    (group(role="king"), '["role"]', "is 'king'", '"voter" or "learner"'),
    (group(role="learner"), '["role"]', '"join" is missing', 'in place of "peers"'),
    (group(readmit="no"), '["readmit"]', "is 'no'", "True or False"),
    ({"node": "127.0.0.1"}, '["node"]', "'127.0.0.1': it has no port", 'Write "host:port"'),
    ({"node": "127.0.0.1:"}, '["node"]', "it has no port", 'Write "host:port"'),
    ({"node": ":7101"}, '["node"]', "it has no host", 'Write "host:port"'),
    ({"node": "127.0.0.1:0"}, '["node"]', "'0' is not a port", "from 1 to 65535"),
    ({"node": "127.0.0.1:65536"}, '["node"]', "'65536' is not a port", "from 1 to 65535"),
    ({"node": "127.0.0.1:-1"}, '["node"]', "'-1' is not a port", "from 1 to 65535"),
    ({"node": "::1:7101"}, '["node"]', "an IPv6 host is written in brackets", 'Write "host:port"'),
    ({"node": "[::x]:7101"}, '["node"]', "'::x' is not an IPv6 address", 'Write "host:port"'),
    ({"node": "a b:7101"}, '["node"]', "'a b' is not a host name", 'Write "host:port"'),
    ({"node": 7101}, '["node"]', "is 7101: is not a string", 'Write "host:port"'),
    (group(peers="127.0.0.1:7101"), '["peers"]', "is a string", "Write a list of all voting members"),
    (group(peers=[]), '["peers"]', "is empty", "leave it out for a group of one"),
    (group(peers=[*PEERS, "x"]), '["peers"]', "has the member 'x': it has no port", 'Write "host:port"'),
    (group(peers=[*PEERS, PEERS[1]]), '["peers"]', f"names {PEERS[1]!r} more than once", "each member once"),
    (group(node="127.0.0.1:7109"), '["node"]', "'127.0.0.1:7109', which is not one of the peers", "exactly as it"),
    (group(secret=None), '["secret"]', 'is missing, and so is "tls"', 'Write "secret"'),
    (group(secret="short"), '["secret"]', "has 5 characters; at least 16", "token_hex(32)"),
    (group(secret=17), '["secret"]', "is an integer", "token_hex(32)"),
    (
        group(node="10.0.0.1:7101", peers=["10.0.0.1:7101", "127.0.0.1:7102"]),
        '["tls"]',
        "is missing, and the member '10.0.0.1:7101' is not on a loopback address",
        '"authority": path}',
    ),
    (
        group(node="localhost:1", peers=["localhost:1", "db.example:1"]),
        '["tls"]',
        "the member 'db.example:1' is not on a loopback address",
        "such as",
    ),
    (group(tls="cert.pem"), '["tls"]', "is a string", '{"certificate": path'),
    (group(tls={}), '["tls"]["certificate"]', "is missing", '{"certificate": path'),
    (group(tls={"authority": []}), '["tls"]["certificate"]', "is missing", '{"certificate": path'),
    (group(tls={"certificate": 1}), '["tls"]["certificate"]', "is an integer", '{"certificate": path'),
    (group(tls={"certificate": "/no/such.pem"}), '["tls"]["certificate"]', "there is no such file", "a PEM file"),
    (group(tls={"certificate": os.sep}), '["tls"]["certificate"]', "is '/', which is a folder", "a PEM file"),
    (group(tls={"certificat": "x"}), '["tls"]', "has the unknown key 'certificat'", "Did you mean 'certificate'?"),
    (
        {"reads": "leadr"},
        '["reads"]',
        "is 'leadr'",
        'Did you mean \'leader\'? Write one of "local", "session", "bounded", "leader"',
    ),
    ({"max_staleness": 0}, '["max_staleness"]', "is 0, which is out of range", "above 0, such as 5"),
    ({"max_staleness": "5"}, '["max_staleness"]', "is '5'", "a number of seconds above 0, such as 5"),
    ({"reads": 1}, '["reads"]', "is 1", 'Write one of "local", "session", "bounded", "leader"'),
    ({"timeout": 0}, '["timeout"]', "is 0, which is out of range", "a number of seconds above 0, such as 5"),
    ({"timeout": -1}, '["timeout"]', "is -1, which is out of range", "above 0"),
    ({"timeout": "5"}, '["timeout"]', "is '5'", "above 0"),
    ({"timeout": True}, '["timeout"]', "is True", "above 0"),
    ({"timeout": float("inf")}, '["timeout"]', "is inf", "above 0"),
    ({"timeout": float("nan")}, '["timeout"]', "is nan", "above 0"),
    ({"lease_timeout": 0}, '["lease_timeout"]', "is 0, which is out of range", "from 0.05 to 60, such as 1."),
    ({"lease_timeout": 61}, '["lease_timeout"]', "is 61, which is out of range", "from 0.05 to 60"),
    ({"lease_timeout": "1"}, '["lease_timeout"]', "is '1'", "from 0.05 to 60"),
    ({"election_timeout": 0.01}, '["election_timeout"]', "out of range", "from 0.05 to 60, such as 0.4"),
    ({"election_timeout": 61}, '["election_timeout"]', "is 61, which is out of range", "from 0.05 to 60"),
    ({"apply_timeout": 0}, '["apply_timeout"]', "is 0, which is out of range", "above 0, such as 60"),
    (
        {"max_transaction_bytes": 1},
        '["max_transaction_bytes"]',
        "is 1, which is out of range",
        "from 1048576 (1 MiB)",
    ),
    ({"max_transaction_bytes": 2**31}, '["max_transaction_bytes"]', "out of range", "to 1073741824 (1 GiB)"),
    ({"wal_limit": 64}, '["wal_limit"]', "is 64, which is out of range", "(1024 GiB), such as 67108864 (64 MiB)"),
    ({"wal_limit": "64 MiB"}, '["wal_limit"]', "is '64 MiB'", "a number of bytes from 1048576 (1 MiB)"),
    ({"log_entries": 9}, '["log_entries"]', "out of range", "from 10 to 1000000000, such as 10000"),
    ({"log_bytes": "1 MiB"}, '["log_bytes"]', "is '1 MiB'", "such as 134217728 (128 MiB)"),
    ({"on_divergence": "rsync"}, '["on_divergence"]', "is 'rsync'. Did you mean 'resync'?", 'or "stop"'),
    ({"on_divergence": True}, '["on_divergence"]', "is True", 'Write "resync"'),
    ({"archive": "s3"}, '["archive"]', "is a string", '{"storage": "backups", "interval": 10}'),
    ({"archive": {"store": "default"}}, '["archive"]', "unknown key 'store'. Did you mean 'storage'?", "an alias"),
    ({"archive": {}}, '["archive"]["storage"]', "is missing", '{"storage": "backups", "interval": 10}'),
    ({"archive": {"storage": "s3"}}, '["archive"]["storage"]', "is 's3'; STORAGES has \"default\"", "an alias"),
    ({"archive": {"storage": ["x"]}}, '["archive"]["storage"]', "is ['x']; STORAGES has", "an alias"),
    ({"archive": {"storage": "default", "interval": 0}}, '["archive"]["interval"]', "is 0", "from 0.1 to 3600, such"),
    ({"archive": {"storage": "default", "interval": "1"}}, '["archive"]["interval"]', "is '1'", "such as 10"),
    ({"archive": {"storage": "default", "hold": -1}}, '["archive"]["hold"]', "is -1", "a number of bytes, 0 or more"),
    ({"snapshot_rate": 1}, '["snapshot_rate"]', "out of range", "from 65536 (64 KiB)"),
    ({"max_transaction_bytes": 1e9}, '["max_transaction_bytes"]', "is 1000000000.0", "a number of bytes"),
    ({"transaction_mode": "IMEDIATE"}, '["transaction_mode"]', "is 'IMEDIATE'", "Did you mean 'IMMEDIATE'?"),
    ({"transaction_mode": 1}, '["transaction_mode"]', "is 1", "or None"),
    ({"init_command": ["PRAGMA a"]}, '["init_command"]', "is a list", "separated by"),
    ({"functions": 3}, '["functions"]', "a int is not a dotted path", "dotted path of a callable"),
    ({"functions": "no.such.module"}, '["functions"]', "it cannot be imported (No module named 'no')", "dotted path"),
    ({"functions": "plain"}, '["functions"]', "it cannot be imported", "dotted path of a callable"),
    ({"functions": f"{__name__}.NOT_CALLABLE"}, '["functions"]', "an int", "dotted path of a callable"),
    ({"mode": 600}, '["mode"]', "is 600 (0o1130)", '0o600 or "0600"'),
    ({"mode": 0o400}, '["mode"]', "is 256 (0o400)", "lets the owner read and write"),
    ({"mode": 0o700}, '["mode"]', "(0o700)", "an octal number"),
    ({"mode": "rw"}, '["mode"]', "is 'rw'", "an octal number"),
    ({"mode": True}, '["mode"]', "is True", "an octal number"),
    ({"host": "no"}, '["host"]', "is 'no'", "Write True (this process may host the node) or False"),
]


@pytest.mark.parametrize(("options", "where", "found", "advice"), WRONG_OPTIONS)
def test_a_wrong_option_is_named_with_its_path_what_was_found_and_what_to_write(
    settings: Any, options: dict[str, Any], where: str, found: str, advice: str
) -> None:
    message = message_of(settings(**options))
    if "NOT_CALLABLE" in str(options):
        found = "it is a int, which cannot be called"
    assert message.startswith(OPTION + where + " ")
    assert found in message
    assert advice in message


WRONG_NAMES = [
    ("", "is empty"),
    (None, "is empty"),
    (5, "is an integer"),
    (":memory:", "a database in memory cannot be replicated or recovered"),
    ("file::memory:?mode=memory", "a database in memory cannot be replicated or recovered"),
    ("file:db.sqlite3?mode=ro", "URIs are not supported"),
    (os.sep, "which is a folder"),
    ("/no/such/folder/db.sqlite3", "the folder '/no/such/folder' does not exist"),
]


@pytest.mark.parametrize(("name", "found"), WRONG_NAMES)
def test_a_wrong_name_is_named_with_what_to_write(settings: Any, name: object, found: str) -> None:
    message = message_of({**settings(), "NAME": name})
    assert message.startswith('DATABASES["default"]["NAME"] ')
    assert found in message
    assert re.search("Write|write", message)


def test_an_option_outside_options_is_sent_to_its_place(settings: Any) -> None:
    message = message_of({**settings(), "peers": PEERS})
    assert message == (
        'DATABASES["default"]["peers"] is in the wrong place. Write it as DATABASES["default"]["OPTIONS"]["peers"].'
    )


def test_messages_name_the_alias(settings: Any) -> None:
    assert message_of(settings(host=1), "replica").startswith('DATABASES["replica"]["OPTIONS"]["host"] ')


def test_a_key_that_may_not_be_read_is_named(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    paths = {name: str(tmp_path / name) for name in ("certificate", "key", "authority")}
    for path in paths.values():
        Path(path).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "key")
    message = message_of(settings(**group(tls=paths)))
    assert message.startswith('DATABASES["default"]["OPTIONS"]["tls"]["key"] ')
    assert f"(uid {os.getuid()}) may not read" in message


def test_no_message_tells_the_secret(settings: Any) -> None:
    """Neither of a wrong value nor of a wrong neighbour."""
    for options in (group(secret="hidden5"), group(secret=["hidden5" * 9]), group(secret="hidden5" * 9, host=3)):
        assert all("hidden5" not in str(problem) for problem in find_problems("default", settings(**options)))


def test_all_problems_are_found_at_once(settings: Any) -> None:
    problems = find_problems("default", {**settings(host=3, mode="x", reads="y", nodes=1), "NAME": ""})
    assert sorted(problem.id for problem in problems) == ["E001", "E002", "E005", "E005", "E007"]
    assert find_problems("default", settings()) == []


def test_an_election_timeout_that_is_not_written_follows_the_distance(settings: Any) -> None:
    for options, fixed in (({}, False), ({"election_timeout": None}, False), ({"election_timeout": 0.4}, True)):
        node = configure("default", settings(**group(**options))).node
        assert (node.election_timeout, node.fixed_election_timeout) == (0.4, fixed)


def test_a_test_database_is_a_group_of_one_whatever_the_options_say(settings: Any) -> None:
    """Nothing is fsynced, no port is opened, a TestCase may keep the write lease for minutes."""
    settings_dict = {**settings(**group(host=False, lease_timeout=2)), TEST: True}
    node = configure("default", settings_dict).node
    assert (node.peers, node.secret, node.durable, node.lease_timeout, node.host) == (
        (LOCALHOST,),
        None,
        False,
        None,
        True,
    )


# The environment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "variable"),
    [("default", "RAFTSQLITE_DEFAULT"), ("read-only.2", "RAFTSQLITE_READ_ONLY_2"), ("Größe", "RAFTSQLITE_GR__E")],
)
def test_the_variable_is_named_after_the_alias(alias: str, variable: str) -> None:
    assert environment_variable(alias) == variable


def test_the_environment_is_merged_deep_over_the_settings(settings: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """Dictionaries key by key, all else replaced, null unsets."""
    name = str(tmp_path / "node2.sqlite3")
    options = {"node": PEERS[1], "timeout": None, "peers": PEERS[:2]}
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", json.dumps({"NAME": name, "OPTIONS": options}))
    node = configure("default", settings(**group(timeout=9, election_timeout=1))).node
    assert (node.name, node.address, node.peers) == (Path(name), PEERS[1], tuple(PEERS[:2]))
    assert (node.timeout, node.election_timeout, node.secret) == (5.0, 1.0, SECRET)


def test_the_environment_is_merged_once(settings: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """A test runner renames the database afterwards, and threads that connect later must find the new name."""
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", json.dumps({"NAME": str(tmp_path / "a")}))
    settings_dict = settings()
    merge_environment("default", settings_dict)
    settings_dict["NAME"] = str(tmp_path / "b")
    merge_environment("default", settings_dict)
    assert configure("default", settings_dict).node.name == tmp_path / "b"


def test_the_environment_of_another_alias_is_left_alone(settings: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAFTSQLITE_OTHER", "{")
    assert configure("default", settings()).node.address == LOCALHOST


def test_merging_does_not_change_a_dictionary_that_aliases_share(settings: Any, monkeypatch: Any) -> None:
    shared: dict[str, Any] = {"timeout": 9}
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", json.dumps({"OPTIONS": {"timeout": 1}}))
    merge_environment("default", {**settings(), "OPTIONS": shared})
    assert shared == {"timeout": 9}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is not JSON"),
        ("{'NAME': 1}", "is not JSON"),
        ("[]", "holds a list"),
        ('"x"', "holds a string"),
        ('{"OPTION": {}}', "has the unknown key 'OPTION'. Did you mean 'OPTIONS'?"),
        ('{"OPTIONS": []}', '"OPTIONS" is a list'),
        ('{"OPTIONS": null}', '"OPTIONS" is null'),
    ],
)
def test_a_wrong_variable_is_named_with_an_example(settings: Any, monkeypatch: Any, text: str, found: str) -> None:
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", text)
    message = message_of(settings())
    assert message.startswith("RAFTSQLITE_DEFAULT")
    assert found in message
    assert '{"NAME": "/srv/node1/db.sqlite3"' in message
    assert [problem.id for problem in find_problems("default", settings())] == ["E008"]


def test_a_variable_that_is_not_json_is_not_repeated(settings: Any, monkeypatch: Any) -> None:
    """It may hold the secret."""
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", '{"OPTIONS": {"secret": "hidden5"')
    assert "hidden5" not in message_of(settings())


def test_a_node_that_comes_later_has_no_peers(settings: Any) -> None:
    options = {"node": "127.0.0.1:7109", "join": PEERS, "secret": SECRET, "role": "learner", "readmit": False}
    node = configure("default", settings(**options)).node
    assert (node.address, node.peers, node.join) == ("127.0.0.1:7109", (), tuple(PEERS))
    assert (node.learner, node.readmit, node.closed) == (True, False, False)
