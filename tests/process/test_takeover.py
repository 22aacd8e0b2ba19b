"""The process that hosts a node ends, and those that were attached go on: every request ends once, and says how."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from .chaos import Record
from .cluster import ClusterNode, RemoteError, Worker, check_files, wait_until
from .conftest import NewCluster
from .fatal import POINTS
from .proxy import Network
from .test_transfers import ACCOUNTS, expected_balances

FEWEST = 3
"""Hosts that end under load, however short the test is to be."""
PATIENCE = 30.0
"""Seconds that statements may take here: the machine is busy, and no request may end for want of time."""


@pytest.fixture
def alone(new_cluster: NewCluster) -> ClusterNode:
    """A group of one, hosted by one process."""
    cluster = new_cluster(1, timeout=PATIENCE)
    cluster.start()
    return cluster[0]


def host_pid(node: ClusterNode) -> int | None:
    """The process that hosts the node now, by its own word."""
    status = node.status()
    return None if status is None else int(status["host"]["pid"])


class Succession:
    """A node and its processes: one hosts, the others are attached."""

    def __init__(self, node: ClusterNode) -> None:
        assert node.worker is not None
        self.node = node
        self.workers = [node.worker]

    def attach(self) -> Worker:
        """One more process, which has used the database already, as one under load has."""
        worker = self.node.attach()
        worker.call("create", text=f"hello from {worker.pid}")
        self.workers.append(worker)
        return worker

    def host(self) -> Worker:
        """The process that hosts now."""

        def found() -> Worker | None:
            pid = host_pid(self.node)
            return next((worker for worker in self.workers if worker.pid == pid and worker.alive), None)

        return wait_until("one of the processes hosts", found)

    def bury(self, worker: Worker) -> None:
        """kill -9, or the end of one that died by itself."""
        worker.kill()
        self.workers.remove(worker)


# One request, and its host dies at a known point of its way ----------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["alone", "leader", "follower"])
def test_a_guests_write_succeeds_and_is_there_once_wherever_it_was_when_its_host_died(
    place: str, new_cluster: NewCluster
) -> None:
    """An autocommit write gets its primary key, a COMMIT its success, from whoever hosts next. The host is of a
    group of one, or leads its group, or follows."""
    cluster = new_cluster(1 if place == "alone" else 3, timeout=PATIENCE, election_timeout=3)
    cluster.start()
    families = {node: Succession(node) for node in cluster}
    seconds: dict[str, float] = {}
    for point in POINTS:
        if "append" in point and place == "follower":
            continue  # it appends what its leader sends
        for kind in ("create", "commit"):
            leader = wait_until("all nodes agree on a leader", cluster.agreed_leader)
            node = leader if place != "follower" else next(node for node in cluster if node is not leader)
            family = families[node]
            host = family.host()
            guest = next((worker for worker in family.workers if worker is not host), None) or family.attach()
            text = f"{kind}, {point}"
            host.call("die_at", point=point, marker=text)
            began = time.monotonic()
            if kind == "create":
                pk = guest.call("create", text=text, wait=60)
                found = guest.call("sql", query="select text from ledger_event where id = %s", parameters=[pk])
                assert found == [[text]]
            else:
                guest.call("begin")
                guest.call("create", text=text)
                guest.call("commit", wait=60)
            seconds[text] = round(time.monotonic() - began, 2)
            assert guest.call("count", text=text) == 1
            wait_until("the host is dead", lambda host=host: not host.alive)  # type: ignore[misc]
            family.bury(host)
    print("seconds:", seconds)
    cluster.converge()
    for node in cluster:
        texts = families[node].host().call("texts")
        assert sorted(text for text in texts if text in seconds) == sorted(seconds)
    check_files(cluster.nodes)


def test_a_commit_whose_host_died_before_it_was_asked_is_carried_out_by_the_next(alone: ClusterNode) -> None:
    """It carries all that was written, and nobody else has written since."""
    family = Succession(alone)
    guest = family.attach()
    guest.call("begin")
    guest.call("create", text="written before")
    family.bury(family.host())
    guest.call("commit")
    assert guest.call("count", text="written before") == 1


def test_a_commit_that_reaches_the_next_host_too_late_is_a_conflict(alone: ClusterNode) -> None:
    """Its base is gone, and it says that nothing of it was committed."""
    family = Succession(alone)
    guest, other = family.attach(), family.attach()
    guest.call("open_accounts", number=1)
    guest.call("begin")
    assert guest.call("lock_account", name="account 0") == 1000
    guest.call("set_balance", name="account 0", balance=1)
    family.bury(family.host())
    other.call("set_balance", name="account 0", balance=2)
    with pytest.raises(RemoteError) as caught:
        guest.call("commit")
    assert caught.value.kind == "TransactionConflict"
    assert other.call("balances")["account 0"] == 2


# The answer is on its way --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["the link breaks", "the leader dies"])
def test_a_write_whose_answer_is_lost_on_its_way_succeeds_and_is_there_once(
    fate: str, new_cluster: NewCluster, network: Network
) -> None:
    """Its author never hears of the entry from the leader that committed it, and asks again under the same id."""
    cluster = new_cluster(timeout=PATIENCE, election_timeout=3)
    network.install(cluster)
    cluster.start()
    for text in ("create", "commit"):
        leader = wait_until("all nodes agree on a leader", cluster.agreed_leader)
        author = next(node for node in cluster if node is not leader)
        assert author.worker is not None
        if text == "commit":
            author.call("begin")
            author.call("create", text=text)
        else:
            author.call("create", text="its origin is open")
        network.hold(leader.address, author.address)
        answer = author.worker.send(text, **({"text": text} if text == "create" else {}))
        wait_until("the leader has applied it", partial(leader.call, "count", text=text))
        assert not answer.done()
        if fate == "the leader dies":
            leader.kill()
        network.cut(leader.address, author.address)
        network.release(leader.address, author.address)
        answer.result(60)
        assert author.call("count", text=text) == 1
        if fate == "the leader dies":
            leader.start()
    cluster.converge()
    for node in cluster:
        assert sorted(node.call("texts")) == ["commit", "create", "its origin is open"]
    check_files(cluster.nodes)


# Takeover ------------------------------------------------------------------------------------------------------


def test_reads_and_status_go_on_at_once_and_writes_as_soon_as_there_is_a_leader(new_cluster: NewCluster) -> None:
    """The dead host led its group; its node is back in the group under another process."""
    cluster = new_cluster(timeout=PATIENCE)
    cluster.start()
    node = cluster.wait_leader()
    family = Succession(node)
    guest, other = family.attach(), family.attach()
    guest.call("create", text="before")
    family.bury(family.host())
    died = time.monotonic()
    seconds: dict[str, float] = {}
    for what, ask in {
        "read": lambda: guest.call("count", text="before", session="reads"),
        "status": lambda: other.call("status", session="status"),
        "write": lambda: guest.call("create", text="after"),
        "write of the other": lambda: other.call("create", text="after, by the other"),
    }.items():
        assert ask()
        seconds[what] = round(time.monotonic() - died, 2)
    print("seconds after the kill:", seconds)
    status = other.call("status")
    assert status["host"]["pid"] in (guest.pid, other.pid)
    assert set(status["host"]["attached"]) == {guest.pid, other.pid} - {status["host"]["pid"]}

    def reached() -> bool:
        return all(member["reachable"] for member in other.call("status")["members"])

    wait_until("the new host reaches both other nodes", reached)
    cluster.converge()


def test_an_idle_process_takes_over_without_being_asked(new_cluster: NewCluster) -> None:
    """Else the group would lack a member until somebody happens to use the database."""
    cluster = new_cluster()
    cluster.start()
    node = cluster[0]
    guest = Succession(node).attach()
    node.kill()
    wait_until("the guest hosts", lambda: host_pid(node) == guest.pid)
    cluster.converge()


def test_a_process_that_may_not_host_waits_for_the_next_host(alone: ClusterNode) -> None:
    """Its write under way ends well when another process takes the lock in time."""
    family = Succession(alone)
    client = alone.attach(host=False)
    client.call("create", text="before")
    family.bury(family.host())
    waiting = client.send("create", text="meanwhile")
    alone.start()
    assert waiting.result(60) > 0
    assert client.call("count", text="meanwhile") == 1


@pytest.mark.timeout(300)
def test_guests_under_load_lose_nothing_and_are_told_no_error_while_host_after_host_is_killed(
    alone: ClusterNode, rng: random.Random, soak_seconds: float
) -> None:
    """Whatever was under way ends with a definite outcome: done, or a conflict that says that nothing was done."""
    record = under_load([alone], rng, soak_seconds / 2, lambda host: host.kill())
    check(record, [alone])


@pytest.mark.timeout(300)
def test_hosts_of_a_group_are_killed_under_their_guests(
    new_cluster: NewCluster, rng: random.Random, soak_seconds: float
) -> None:
    """Leaders and followers alike."""
    cluster = new_cluster(timeout=PATIENCE)
    cluster.start()
    record = under_load(cluster.nodes, rng, soak_seconds / 2, lambda host: host.kill())
    cluster.converge()
    check(record, cluster.nodes)
    check_files(cluster.nodes)


@pytest.mark.timeout(300)
def test_guests_notice_nothing_when_host_after_host_is_stopped(
    alone: ClusterNode, rng: random.Random, soak_seconds: float
) -> None:
    """As a server does that replaces its workers."""
    record = under_load([alone], rng, soak_seconds / 3, lambda host: host.stop())
    check(record, [alone])


def under_load(nodes: list[ClusterNode], rng: random.Random, seconds: float, end: Any) -> Record:
    """Have three processes on each node work, ``end`` one that hosts again and again; the load's record. A
    process that was ended is replaced by one that attaches."""
    nodes[0].call("open_accounts", number=ACCOUNTS)
    folder = nodes[0].folder.parent / "protocols"
    folder.mkdir()
    families = [Succession(node) for node in nodes]

    def work(worker: Worker) -> None:
        kinds = {"insert": 1, "bulk": 1, "transfer": 1, "bump": 1}
        tag = f"p{worker.pid}"
        worker.call("start_load", path=str(folder / tag), seed=rng.randrange(2**32), tag=tag, kinds=kinds)

    for family in families:
        for _ in range(2):
            work(family.attach())
    deadline = time.monotonic() + seconds
    ended = 0
    while ended < FEWEST or time.monotonic() < deadline:
        time.sleep(rng.uniform(0.5, 2.0))
        family = rng.choice(families)
        host = family.host()
        end(host)
        family.workers.remove(host)
        ended += 1
        work(family.attach())
    for family in families:
        for worker in family.workers:
            worker.call("stop_load", wait=PATIENCE + 30)
        family.node.worker = family.host()
    record = Record(folder.iterdir())
    print(f"{ended} hosts ended; {dict(record.reasons)}")
    return record


def check(record: Record, nodes: list[ClusterNode]) -> None:
    """What was acknowledged is there once, what was refused is not, and nothing is unknown."""
    assert not record.wrong, record.wrong[:10]
    assert not record.unknown, record.unknown[:10]
    for node in nodes:
        texts = [text for text in node.call("texts") if not text.startswith("hello ")]
        transfers = [text for text in texts if text.startswith("transfer ")]
        bulks = [text.split(" ")[1:] for text in texts if text.startswith("bulk ")]
        record.check_rows("transfer", transfers)
        record.check_rows("insert", [text for text in texts if not text.startswith(("transfer ", "bulk "))])
        for part in {part for _, part in bulks}:
            record.check_rows("bulk", [text for text, its_part in bulks if its_part == part])
        balances = node.call("balances")
        record.check_counter("bump a", balances["counter a"])
        record.check_counter("bump b", balances["counter b"])
        expected = expected_balances(node.call("accounts"), transfers)
        assert {name: balances[name] for name in expected} == expected


# A host that stands still, and one whose child lives on -----------------------------------------------------------


def test_guests_of_a_host_that_stands_still_are_told_which_process_it_is(new_cluster: NewCluster) -> None:
    """In time, in autocommit and in a transaction; a write that was under way is there at most once."""
    node = new_cluster(1)[0]
    node.start()
    node.call("migrate", wait=60)
    node.call("open_accounts", number=1)
    guest = node.attach()
    guest.call("create", text="before")
    guest.call("begin", session="transaction")
    guest.call("lock_account", session="transaction", name="account 0")
    assert node.worker is not None
    node.worker.pause()
    asked = {
        "create": guest.send("create", text="meanwhile"),
        "statement": guest.send("lock_account", session="transaction", name="account 0"),
        "leader's read": guest.send("count", session="reader", text="before", level="leader"),
    }
    kinds = {what: error_of(answer) for what, answer in asked.items()}
    for what, error in kinds.items():
        assert str(node.worker.pid) in error.text, f"{what}: {error}"
        assert error.kind in ("CommitOutcomeUnknown", "HostLost", "OperationalError", "Unavailable"), what
    surely_not = kinds["create"].kind != "CommitOutcomeUnknown"
    assert guest.call("count", session="local", text="before") == 1, "local reads go on"
    late = error_of(guest.send("create", session="late", text="never sent"))
    assert str(node.worker.pid) in late.text and late.kind != "CommitOutcomeUnknown"
    node.worker.signal(signal.SIGCONT)
    assert guest.call("create", session="again", text="after") > 0
    assert guest.call("count", session="again", text="meanwhile") <= (0 if surely_not else 1)
    assert guest.call("count", session="again", text="never sent") == 0


def error_of(answer: Future[Any]) -> RemoteError:
    """The error that a verb ends with."""
    with pytest.raises(RemoteError) as caught:
        answer.result(60)
    return caught.value


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Process ids to kill at the end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_child_that_outlives_its_parent_hides_the_end_of_neither_host_nor_guest(
    new_cluster: NewCluster, children: list[int]
) -> None:
    """It has no copy of their sockets: the next host gets the port, and its guests are not left waiting."""
    cluster = new_cluster(timeout=PATIENCE)
    cluster.start()
    node = cluster.wait_leader()
    family = Succession(node)
    guest, dying = family.attach(), family.attach()
    dying.call("begin")
    dying.call("create", text="never committed")
    children += [family.host().call("fork"), dying.call("fork", session="other")]
    family.bury(dying)
    assert guest.call("create", text="the lease is free") > 0
    wait_until(
        "the dead guest is no longer attached", lambda: guest.call("status")["host"]["attached"] == [guest.pid]
    )
    family.bury(family.host())
    assert guest.call("create", text="after") > 0
    assert guest.call("status")["host"]["pid"] == guest.pid
    assert guest.call("count", text="never committed") == 0
    cluster.converge()
