"""``dns://`` and ``dns+srv://`` in the settings: what they become, what is refused, what an answer is good for."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_raftsqlite import discovery
from django_raftsqlite.configuration import configure, find_problems
from django_raftsqlite.discovery import Addresses, Discovery, LookupFailed, Services
from django_raftsqlite.node.seeking import weigh
from django_raftsqlite.settings_checks import of_alias
from tests.support.nameserver import NameServer

SRV = "dns+srv://_raft._tcp.example.org"
SECRET = "a secret of some length"


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Makes ``DATABASES["default"]``; keyword arguments are its OPTIONS, and None leaves one out."""
    files = {name: str(tmp_path / f"{name}.pem") for name in ("certificate", "key", "authority")}
    for path in files.values():
        Path(path).touch()

    def make(**options: Any) -> dict[str, Any]:
        given = {"node": "raft-0.example.org:7100", "tls": files, **options}
        return {"ENGINE": "django_raftsqlite", "NAME": tmp_path / "db.sqlite3", "OPTIONS": given, "TEST": {}}

    return make


def refused(settings_dict: dict[str, Any]) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        configure("default", settings_dict)
    return str(caught.value)


def test_founders_are_looked_up_and_nobody_is_a_peer_by_the_settings(settings: Any) -> None:
    node = configure("default", settings(peers=f"{SRV}?expect=3")).node
    assert (node.address, node.peers, node.join) == ("raft-0.example.org:7100", (), ())
    assert node.discovery == Discovery(
        "peers", f"{SRV}?expect=3", Services("_raft._tcp.example.org"), expect=3, local=False
    )
    assert str(node.discovery) == f'OPTIONS["peers"] = "{SRV}?expect=3"'
    assert not node.closed


def test_who_joins_needs_no_number(settings: Any) -> None:
    node = configure("default", settings(join=f"{SRV}?server=127.0.0.1:8600", role="learner")).node
    assert node.discovery is not None
    assert node.discovery.expect is None
    assert node.learner


@pytest.mark.parametrize(
    ("server", "asked"),
    [("10.0.0.2", ("10.0.0.2", 53)), ("127.0.0.1:8600", ("127.0.0.1", 8600)), ("[::1]:53", ("::1", 53))],
)
def test_a_name_server_may_be_named(settings: Any, server: str, asked: tuple[str, int]) -> None:
    node = configure("default", settings(join=f"{SRV}?server={server}")).node
    assert isinstance(node.discovery, Discovery)
    assert node.discovery.find == Services("_raft._tcp.example.org", asked)


@pytest.mark.parametrize(("own", "version"), [("10.0.0.1:7100", 4), ("[2001:db8::1]:7100", 6)])
def test_addresses_are_looked_up_for_nodes_that_are_known_by_theirs(settings: Any, own: str, version: int) -> None:
    node = configure("default", settings(node=own, peers="dns://raft.example.org:7100?expect=3")).node
    assert isinstance(node.discovery, Discovery)
    assert node.discovery.find == Addresses("raft.example.org", 7100, version)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peers": SRV}, ['["peers"]', 'without "expect"', "itself alone", '"?expect=3"', 'leave "peers" out']),
        ({"peers": f"{SRV}?expect=1"}, ["expect is '1'", "from 2 to 64"]),
        ({"peers": f"{SRV}?expect=three"}, ["expect is 'three'"]),
        ({"peers": f"{SRV}?expect=99999999999"}, ["expect is '99999999999'"]),
        ({"peers": f"{SRV}?expect=3&expect=3"}, ["'expect' is unknown, or there twice"]),
        ({"peers": f"{SRV}?expcet=3"}, ["'expcet' is unknown", "expect"]),
        ({"peers": f"{SRV}:7100?expect=3"}, ["SRV records tell the ports"]),
        ({"peers": f"{SRV}/x?expect=3"}, ["more than a name"]),
        ({"peers": "dns+srv://?expect=3"}, ["it has no name"]),
        ({"peers": "dns+srv://a b?expect=3"}, ["is not a host name"]),
        ({"peers": "http://raft.example.org"}, ["is 'http://raft.example.org'", "Write", "dns+srv://"]),
        ({"peers": [f"{SRV}?expect=3"]}, ["alone, not in a list"]),
        ({"peers": f"{SRV}?expect=3&server=ns.example.org"}, ["server is 'ns.example.org'", "127.0.0.1:8600"]),
        ({"join": f"{SRV}?expect=3"}, ['["join"]', "founds no group", 'Leave "expect" out']),
        ({"join": SRV, "peers": ["a:1"]}, ['["join"]', 'so is "peers"']),
        ({"peers": f"{SRV}?expect=3", "role": "learner"}, ['["role"]', '"join" is missing']),
        ({"peers": f"{SRV}?expect=3", "node": None}, ['["node"]', 'although "peers" is given']),
        ({"peers": f"{SRV}?expect=3", "node": "Raft-0.example.org.:7100"}, ["Write 'raft-0.example.org:7100'"]),
        ({"peers": "dns://raft.example.org?expect=3"}, ["no port"]),
        ({"peers": "dns://10.0.0.1:7100?expect=3"}, ["nothing to be looked up"]),
        (
            {"peers": "dns://raft.example.org:7100?expect=3"},
            ["raft-0", "IP addresses only", "dns+srv"],
        ),
        (
            {"peers": "dns://raft.example.org:7100?expect=3", "node": "10.0.0.1:7101"},
            ["all members are to be on the port 7100", "Write '10.0.0.1:7100' as node"],
        ),
        (
            {"peers": "dns://raft.example.org:7100?expect=3", "node": "[2001:DB8::1]:7100"},
            ["as DNS has them", "Write '[2001:db8::1]:7100' as node"],
        ),
        ({"peers": f"{SRV}?expect=3", "tls": None}, ['["secret"]', "a group of several nodes would trust"]),
        ({"peers": f"{SRV}?expect=3", "tls": None, "secret": SECRET}, ['["tls"]', "is not on a loopback address"]),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_what_to_write(
    settings: Any, options: dict[str, Any], words: list[str]
) -> None:
    text = refused(settings(**options))
    assert text.startswith('DATABASES["default"]["OPTIONS"]["')
    for word in words:
        assert word in text


def test_a_missing_library_is_named(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns", None)
    assert "pip install django-raftsqlite[dns]" in refused(settings(peers=f"{SRV}?expect=3"))


def test_a_test_database_looks_nobody_up(settings: Any) -> None:
    made = settings(peers=f"{SRV}?expect=3")
    made["_RAFTSQLITE_TEST"] = True
    node = configure("default", made).node
    assert (node.discovery, node.peers) == (None, ("localhost",))


def test_an_even_number_is_warned_of(settings: Any) -> None:
    made = settings(peers=f"{SRV}?expect=4")
    assert not find_problems("default", made)
    configuration = configure("default", made)
    assert "raftsqlite.W001" in {warning.id for warning in of_alias("default", made, configuration)}


# Look-ups


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer ends the wait; how soon it comes is the machine's matter."""
    monkeypatch.setattr(discovery, "SECONDS", 30.0)


def look(server: NameServer, *, local: bool = False) -> frozenset[str]:
    host, _, port = server.address.rpartition(":")
    find = Services("_raft._tcp.example.org", (host, int(port)))
    return Discovery("peers", SRV, find, expect=3, local=local).look()


def test_srv_records_tell_hosts_and_ports_in_small_letters() -> None:
    with NameServer("_raft._tcp.example.org") as server:
        server.tell(["Raft-0.example.org:7100", "raft-1.example.org:7200", "raft-0.example.org:7100"])
        assert look(server) == {"raft-0.example.org:7100", "raft-1.example.org:7200"}


def test_a_name_that_is_not_there_is_no_empty_group() -> None:
    with NameServer("_raft._tcp.example.org") as server, pytest.raises(LookupFailed, match=r"was not found.*exist"):
        look(server)


def test_a_name_server_that_does_not_answer_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SECONDS", 0.1)
    with NameServer("_raft._tcp.example.org") as server:
        server.silent = True
        with pytest.raises(LookupFailed, match="was not found"):
            look(server)


def test_without_tls_nobody_is_spoken_to_but_on_this_machine() -> None:
    with NameServer("_raft._tcp.example.org") as server:
        server.tell(["localhost:7100", "raft-1.example.org:7200"])
        with pytest.raises(LookupFailed, match=r"names raft-1.example.org:7200, which is not on a loopback"):
            look(server, local=True)


def test_an_answer_that_names_too_many_or_nonsense_is_none() -> None:
    def say(*addresses: str) -> Discovery:
        return Discovery("peers", SRV, lambda: frozenset(addresses), expect=3, local=False)

    with pytest.raises(LookupFailed, match="names 65 nodes; a group has 64 at most"):
        say(*(f"h{number}:1" for number in range(65))).look()
    with pytest.raises(LookupFailed, match="'h:0'"):
        say("h:0", "g:1").look()


def test_addresses_of_one_kind_are_members_on_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str, port: int, family: int, kind: int) -> list[Any]:
        asked.append((host, family))
        hosts = ["2001:db8::1", "2001:db8::2"] if family == socket.AF_INET6 else ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
        return [(family, kind, 6, "", (each, port)) for each in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert Addresses("raft.example.org", 7100, 4)() == {"10.0.0.1:7100", "10.0.0.2:7100"}
    assert Addresses("raft.example.org", 7100, 6)() == {"[2001:db8::1]:7100", "[2001:db8::2]:7100"}
    assert asked == [("raft.example.org", socket.AF_INET), ("raft.example.org", socket.AF_INET6)]


def test_an_address_that_is_not_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(LookupFailed, match=r"raft.example.org was not found: Name or service not known"):
        Addresses("raft.example.org", 7100, 4)()


# What an answer is good for


@pytest.mark.parametrize(
    ("named", "expect", "found", "says"),
    [
        ("", 3, False, "names nobody"),
        ("a", 3, False, "names a: there is nobody to be asked"),
        ("ab", 3, False, "names 2 of the 3 nodes"),
        ("abc", 3, True, None),
        ("bcd", 3, False, "and not this node, a"),
        ("abcd", 3, False, "write expect=4 on all of them"),
        ("bcde", 3, False, "more than the 3"),
        ("a", None, False, "nobody to be asked"),
        ("ab", None, False, None),
        ("abc", None, False, None),
    ],
)
def test_a_group_is_founded_by_exactly_as_many_as_are_expected(
    named: str, expect: int | None, found: bool, says: str | None
) -> None:
    founds, text = weigh(frozenset(named), "a", expect)
    assert founds is found
    assert text == says if says is None else says in (text or "")
