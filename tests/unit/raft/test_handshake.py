"""The handshake: nobody is believed before the proof, and every way of not being the right member is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from django_raftsqlite.raft.frames import MAX_HELLO
from django_raftsqlite.raft.handshake import Certificate, Handshake, HandshakeError, Identity, split_address

LOW, MIDDLE, HIGH = "127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"
ALL = frozenset({LOW, MIDDLE, HIGH})
CLUSTER = b"c" * 16


def identity(address: str, **changes: Any) -> Identity:
    base = Identity(address=address, others=ALL - {address}, cluster=CLUSTER, secret="s3cret")
    return replace(base, **changes)


def shake(dialer: Handshake, acceptor: Handshake) -> None:
    """Carry messages to and fro until both are done."""
    message: dict[str, Any] | None = dialer.start()
    turn, other = acceptor, dialer
    while message is not None:
        message = turn.receive(message)
        turn, other = other, turn


def refusal(dialer: Handshake, acceptor: Handshake) -> HandshakeError:
    """The error in which the handshake ends; neither side believes the other."""
    with pytest.raises(HandshakeError) as caught:
        shake(dialer, acceptor)
    assert not acceptor.done
    return caught.value


def test_two_members_with_the_secret_know_each_other() -> None:
    """Both sides end up with the proven identity of the other."""
    dialer, acceptor = Handshake(identity(HIGH), dial=LOW), Handshake(identity(LOW))
    shake(dialer, acceptor)
    assert (dialer.peer, acceptor.peer) == (LOW, HIGH)
    assert dialer.warnings == acceptor.warnings == ()


def test_nobody_is_believed_before_the_proof() -> None:
    """After the hellos the acceptor still has no peer, whatever was claimed."""
    dialer, acceptor = Handshake(identity(HIGH), dial=LOW), Handshake(identity(LOW))
    answer = acceptor.receive(dialer.start())
    assert answer is not None
    assert acceptor.peer is None and not acceptor.done
    assert dialer.receive(answer) is not None
    assert dialer.peer is None and not dialer.done


def test_a_wrong_secret_is_refused_by_the_acceptor_first() -> None:
    """The dialer proves first: who does not know the secret never sees a proof of the acceptor's."""
    acceptor = Handshake(identity(LOW))
    error = refusal(Handshake(identity(HIGH, secret="wrong"), dial=LOW), acceptor)
    assert "secret" in str(error)
    assert error.answer is not None and "proof" not in error.answer


OLD, NEW, OTHER = "the old secret", "the new secret", "nobody's secret"


@pytest.mark.parametrize("one", [(OLD, None), (OLD, NEW), (NEW, OLD), (NEW, None)])
@pytest.mark.parametrize("two", [(OLD, None), (OLD, NEW), (NEW, OLD), (NEW, None), (OTHER, None), (OTHER, OLD)])
def test_two_members_meet_if_they_have_a_secret_in_common(
    one: tuple[str, str | None], two: tuple[str, str | None]
) -> None:
    """In whatever order each names them: so that one is replaced by another node by node."""
    dialer = Handshake(identity(HIGH, secret=one[0], second_secret=one[1]), dial=LOW)
    acceptor = Handshake(identity(LOW, secret=two[0], second_secret=two[1]))
    if ({*one} & {*two}) - {None}:
        shake(dialer, acceptor)
        assert (dialer.peer, acceptor.peer) == (LOW, HIGH)
    else:
        assert "its secret is not this group's secret" in str(refusal(dialer, acceptor))


def test_a_second_secret_is_no_way_in_without_one() -> None:
    """Neither nothing, nor the public key of a group without a secret, nor garbage is taken for it."""
    for also in (None, b"", b"x" * 32, "x" * 32, [b"x" * 32], 7):
        acceptor = Handshake(identity(LOW, second_secret=NEW))
        acceptor.receive(Handshake(identity(HIGH), dial=LOW).start())
        with pytest.raises(HandshakeError, match="secret"):
            acceptor.receive({"proof": b"x" * 32, "also": also})
        assert not acceptor.done
    for secret in (None, ""):
        with pytest.raises(ValueError, match="second secret"):
            identity(LOW, secret=secret, second_secret=NEW, tls=True)
    with pytest.raises(ValueError, match="second secret"):
        identity(LOW, second_secret="")


def test_secrets_are_in_no_repr() -> None:
    assert OLD not in repr(identity(LOW, secret=OLD)) and NEW not in repr(identity(LOW, second_secret=NEW))


def test_an_acceptor_without_the_secret_is_not_believed() -> None:
    """An impostor that listens at a member's address is found out by the dialer."""
    dialer, impostor = Handshake(identity(HIGH), dial=LOW), Handshake(identity(LOW, secret="wrong"))
    hello = impostor.receive(dialer.start())
    assert hello is not None
    dialer.receive(hello)
    with pytest.raises(HandshakeError, match="secret"):
        dialer.receive({"proof": b"x" * 32})
    assert not dialer.done


def test_a_replayed_handshake_proves_nothing() -> None:
    """The acceptor's nonce is fresh, so yesterday's proof is not today's."""
    dialer, first = Handshake(identity(HIGH), dial=LOW), Handshake(identity(LOW))
    hello = dialer.start()
    answer = first.receive(hello)
    assert answer is not None
    proof = dialer.receive(answer)
    assert proof is not None and first.receive(proof) is not None
    second = Handshake(identity(LOW))
    assert second.receive(hello) is not None
    with pytest.raises(HandshakeError, match="secret"):
        second.receive(proof)
    assert not second.done


def test_a_proof_sent_back_to_its_author_proves_nothing() -> None:
    """The labels of the two directions differ (reflection)."""
    dialer, acceptor = Handshake(identity(HIGH), dial=LOW), Handshake(identity(LOW))
    answer = acceptor.receive(dialer.start())
    assert answer is not None
    proof = dialer.receive(answer)
    assert proof is not None
    with pytest.raises(HandshakeError, match="secret"):
        dialer.receive(proof)


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        ({"magic": "smtp"}, "does not speak"),
        ({"protocols": None}, "does not say which versions"),
        ({"protocols": [2, 1]}, "does not say which versions"),
        ({"protocols": [0, 1]}, "does not say which versions"),
        ({"protocols": [1, 2**40]}, "does not say which versions"),
        ({"protocols": ["1", "2"]}, "does not say which versions"),
        ({"protocols": [1]}, "does not say which versions"),
        ({"cluster": b"d" * 16}, "another group"),
        ({"from": "nowhere"}, "host:port"),
        ({"from": LOW}, "own address"),
        ({"member": b"short"}, "malformed"),
        ({"fresh": 1}, "malformed"),
        ({"to": MIDDLE}, "looks for"),
        ({"nonce": b"short"}, "malformed"),
        ({"nonce": "x" * 32}, "malformed"),
        ({"facts": [1]}, "malformed"),
        ({"facts": {"sqlite": 3}}, "malformed"),
        ({"from": None}, "malformed"),
        ({"package": "x" * 1000}, "malformed"),
    ],
)
def test_a_wrong_hello_is_refused_with_its_reason(hello: dict[str, Any], text: str) -> None:
    """Each field of the hello is checked before anything is answered."""
    acceptor = Handshake(identity(LOW))
    with pytest.raises(HandshakeError, match=text):
        acceptor.receive({**Handshake(identity(HIGH), dial=LOW).start(), **hello})


def test_who_knows_the_secret_may_ask_to_be_a_member_and_who_has_a_certificate_may_not() -> None:
    """An authority may have signed for others than this group's members."""
    stranger = "127.0.0.1:9999"
    dialer, acceptor = Handshake(identity(stranger), dial=LOW), Handshake(identity(LOW))
    shake(dialer, acceptor)
    assert acceptor.peer == stranger
    hello = Handshake(identity(stranger, secret=None, tls=True), dial=LOW).start()
    with pytest.raises(HandshakeError, match="not a member"):
        Handshake(identity(LOW, secret=None, tls=True)).receive(hello)


def test_a_log_that_knows_of_nothing_meets_a_group_under_another_id() -> None:
    """It may have been told other founders than the group had: what passes then is about members alone."""
    fresh, old = identity(HIGH, cluster=b"d" * 16, fresh=True, member=b"1" * 16), identity(LOW, member=b"2" * 16)
    dialer, acceptor = Handshake(fresh, dial=LOW), Handshake(old)
    shake(dialer, acceptor)
    assert (dialer.same_group, acceptor.same_group) == (False, False)
    assert (dialer.member, acceptor.member) == (b"2" * 16, b"1" * 16)
    both_fresh = Handshake(replace(fresh, cluster=b"d" * 16), dial=LOW).start()
    with pytest.raises(HandshakeError, match="another group"):
        Handshake(replace(old, fresh=True)).receive(both_fresh)


def test_the_member_that_should_be_dialled_does_not_dial() -> None:
    """One of the two dials; else a pair could have two sessions that close each other for ever."""
    assert "does not dial" in str(refusal(Handshake(identity(LOW), dial=HIGH), Handshake(identity(HIGH))))


def test_another_member_at_the_dialled_address_is_refused() -> None:
    """A dialer gets the member it dialled, or none."""
    dialer = Handshake(identity(HIGH), dial=LOW)
    with pytest.raises(HandshakeError, match=f"it is {MIDDLE}, not {LOW}"):
        dialer.receive({**dialer.start(), "from": MIDDLE, "to": HIGH})


def test_differing_facts_are_refused_or_told() -> None:
    """Another SQLite could compute other rows and is refused by name; another Python is only told."""
    here = {"sqlite": "3.50", "python": "3.12"}
    error = refusal(
        Handshake(identity(HIGH, facts={"sqlite": "3.40", "python": "3.12"}), dial=LOW),
        Handshake(identity(LOW, facts=here)),
    )
    assert "sqlite differs: '3.40' there, '3.50' here" in str(error)
    dialer = Handshake(identity(HIGH, facts={"sqlite": "3.50", "python": "3.11"}), dial=LOW)
    acceptor = Handshake(identity(LOW, facts=here))
    shake(dialer, acceptor)
    assert acceptor.warnings == ("python differs: '3.11' there, '3.12' here",)
    assert dialer.warnings == ("python differs: '3.12' there, '3.11' here",)


@pytest.mark.parametrize(("high", "low"), [((1, 2), (1, 1)), ((1, 2), (2, 9)), ((3, 3), (1, 4))])
def test_nodes_that_have_a_protocol_version_in_common_meet(high: tuple[int, int], low: tuple[int, int]) -> None:
    """Whichever of them is the newer one."""
    dialer = Handshake(identity(HIGH, protocols=high), dial=LOW)
    acceptor = Handshake(identity(LOW, protocols=low))
    shake(dialer, acceptor)
    assert (dialer.peer, acceptor.peer) == (LOW, HIGH)


@pytest.mark.parametrize(
    ("high", "low", "text"),
    [
        ((3, 5), (1, 2), f"upgrade '{LOW}' first: it speaks protocol 1 to 2, and '{HIGH}' speaks 3 to 5"),
        ((1, 1), (2, 2), f"upgrade '{HIGH}' first: it speaks protocol 1, and '{LOW}' speaks 2"),
    ],
)
def test_nodes_without_a_common_protocol_version_say_at_both_ends_which_one_to_upgrade(
    high: tuple[int, int], low: tuple[int, int], text: str
) -> None:
    """The acceptor finds it, and its answer tells the dialer in the same words."""
    dialer = Handshake(identity(HIGH, protocols=high), dial=LOW)
    error = refusal(dialer, Handshake(identity(LOW, protocols=low)))
    assert str(error) == text
    assert error.answer is not None
    with pytest.raises(HandshakeError, match="it refused this node: ") as told:
        dialer.receive(error.answer)
    assert text in str(told.value)


def test_the_protocol_versions_are_part_of_the_proof() -> None:
    """Nobody in between can make two nodes believe that the other is older than it is."""
    dialer = Handshake(identity(HIGH, protocols=(1, 2)), dial=LOW)
    acceptor = Handshake(identity(LOW, protocols=(1, 2)))
    answer = acceptor.receive({**dialer.start(), "protocols": [1, 1]})
    assert answer is not None
    proof = dialer.receive(answer)
    assert proof is not None
    with pytest.raises(HandshakeError, match="secret"):
        acceptor.receive(proof)


def test_facts_are_part_of_the_proof() -> None:
    """Nobody in between can change what a member says it runs on."""
    dialer, acceptor = Handshake(identity(HIGH, facts={"sqlite": "3.40"}), dial=LOW), Handshake(identity(LOW))
    answer = acceptor.receive({**dialer.start(), "facts": {}})
    assert answer is not None
    proof = dialer.receive(answer)
    assert proof is not None
    with pytest.raises(HandshakeError, match="secret"):
        acceptor.receive(proof)


def test_strangers_learn_no_facts() -> None:
    """The comparison of facts comes after the proof, and a refusal before it names none."""
    wrong = identity(HIGH, secret="wrong", facts={"sqlite": "other"})
    error = refusal(Handshake(wrong, dial=LOW), Handshake(identity(LOW, facts={"sqlite": "3.50"})))
    assert error.answer is not None and "3.50" not in str(error.answer)


def test_what_a_stranger_sends_is_quoted_and_short_in_messages() -> None:
    """No line break or flood of a stranger's gets into the log."""
    evil = "x\n2026 forged line" + "y" * 400
    acceptor = Handshake(identity(LOW))
    with pytest.raises(HandshakeError) as caught:
        acceptor.receive({**Handshake(identity(HIGH), dial=LOW).start(), "from": evil})
    assert "forged line" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_without_secret_and_tls_there_is_no_identity() -> None:
    """The last line of defence; the settings refuse it, too."""
    with pytest.raises(ValueError, match="secret or TLS"):
        identity(LOW, secret=None)
    with pytest.raises(ValueError, match="secret or TLS"):
        identity(LOW, secret="")


def test_facts_that_no_hello_can_carry_are_refused_at_the_start() -> None:
    """Else every peer would refuse the hello, and say nothing of why."""
    with pytest.raises(ValueError, match="facts"):
        identity(LOW, facts={f"fact{n}": "x" * 100 for n in range(MAX_HELLO // 100)})


def test_a_certificate_speaks_for_its_names_only() -> None:
    """Names count exactly: no wildcard, no common name, no address as a DNS name."""
    certificate = Certificate.from_ssl(
        {
            "subject": ((("commonName", "cn.example"),),),
            "subjectAltName": (("DNS", "A.example"), ("DNS", "*.wild.example"), ("IP Address", "0:0:0:0:0:0:0:1")),
        }
    )
    assert certificate.covers("a.EXAMPLE") and certificate.covers("::1")
    for other in ("cn.example", "b.wild.example", "127.0.0.1", "example", "a.example."):
        assert not certificate.covers(other), other
    assert not Certificate.from_ssl(None).covers("a.example")


def test_with_tls_the_claimed_host_must_be_in_the_certificate() -> None:
    """The secret alone is not enough then, and neither is a certificate for another host."""
    for certificate in (None, Certificate(frozenset({"localhost"}), frozenset({"127.0.0.2"}))):
        acceptor = Handshake(identity(LOW, tls=True), certificate=certificate)
        with pytest.raises(HandshakeError, match=r"certificate does not name 127\.0\.0\.1"):
            acceptor.receive(Handshake(identity(HIGH, tls=True), dial=LOW).start())


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:0", "host:65536", "host:x", "host:-1", "[]:5"])
def test_a_wrong_address_is_refused(address: str) -> None:
    """An address is host:port."""
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_addresses_are_split_at_the_last_colon() -> None:
    """IPv6 addresses stand in brackets."""
    assert split_address("db1.example:7100") == ("db1.example", 7100)
    assert split_address("[::1]:7100") == ("::1", 7100)
