"""Several processes of one machine share its node, and outlive each other."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from functools import partial

import pytest

from .cluster import TESTPROJECT, ClusterNode, RemoteError, node_environment, until_accepted, wait_until
from .conftest import NewCluster


@pytest.fixture
def alone(new_cluster: NewCluster) -> ClusterNode:
    """A group of one, hosted by one process."""
    cluster = new_cluster(1)
    cluster.start()
    cluster[0].call("open_accounts", number=2)
    return cluster[0]


def test_an_attached_process_can_do_everything(alone: ClusterNode) -> None:
    """Reads, writes, transactions with savepoints and locks, and status, as if it hosted the node itself."""
    guest = alone.attach()
    assert guest.call("create", text="by the guest") > 0
    assert guest.call("count", text="by the guest") == 1
    assert alone.call("count", text="by the guest") == 1
    assert guest.call("count", text="by the guest", level="leader") == 1

    guest.call("begin")
    assert guest.call("lock_account", name="account 0") == 1000
    guest.call("set_balance", name="account 0", balance=900)
    guest.call("begin")
    guest.call("set_balance", name="account 1", balance=1100)
    guest.call("commit")
    assert guest.call("balances")["account 1"] == 1100, "a transaction sees its own writes"
    assert alone.call("balances")["account 1"] == 1000, "and nobody else does"
    guest.call("commit")
    assert alone.call("balances") == guest.call("balances")
    assert alone.call("balances")["account 0"] == 900

    status = guest.call("status")
    assert alone.worker is not None
    assert (status["role"], status["host"]["pid"]) == ("leader", alone.worker.pid)
    assert alone.call("status")["host"]["attached"] == [guest.pid]
    with pytest.raises(RemoteError, match="UNIQUE") as caught:
        guest.call("sql", query="insert into ledger_account (name, balance) values ('account 0', 1)")
    assert caught.value.kind == "IntegrityError"


def test_a_transaction_survives_the_process_that_hosts_its_node(alone: ClusterNode) -> None:
    """It is run again on the next host, whoever that is, and goes on when it sees the same."""
    guest = alone.attach()
    other = alone.attach()
    guest.call("create", text="before")
    write = "update ledger_account set balance = balance - 1 where name = 'account 0'"
    guest.call("begin")
    guest.call("sql", query=write)
    alone.kill()
    guest.call("sql", query=write)
    assert other.call("balances")["account 0"] == 1000, "not yet"
    guest.call("commit")
    assert guest.call("balances")["account 0"] == 998
    assert other.call("create", text="after, by the other") > 0
    hosts = {worker.call("status")["host"]["pid"] for worker in (guest, other)}
    assert len(hosts) == 1
    assert hosts < {guest.pid, other.pid}
    assert set(other.call("texts")) >= {"before", "after, by the other"}


def test_a_transaction_that_sees_something_else_on_the_next_host_is_lost(alone: ClusterNode) -> None:
    guest = alone.attach()
    other = alone.attach()
    guest.call("begin")
    guest.call("sql", query="update ledger_account set balance = balance - 1 where balance = 1000")
    alone.kill()
    other.call("set_balance", name="account 0", balance=7)
    write = "update ledger_account set balance = 1 where name = 'account 0'"
    with pytest.raises(RemoteError, match="answered differently") as caught:
        guest.call("sql", query=write)
    assert caught.value.kind == "TransactionConflict"
    # What follows in the same atomic() must not become a transaction of its own.
    for statement in (write, "select 1"):
        with pytest.raises(RemoteError, match="rolled back already") as caught:
            guest.call("sql", query=statement)
        assert caught.value.kind == "TransactionConflict"
    with pytest.raises(RemoteError, match="rolled back already") as caught:
        guest.call("commit")
    assert caught.value.kind == "TransactionConflict"
    assert guest.call("balances", session="look")["account 0"] == 7, "the transaction is gone as a whole"
    assert guest.call("create", text="on the connection that lost its transaction") > 0


def test_a_member_whose_host_was_killed_is_taken_over_within_its_group(new_cluster: NewCluster) -> None:
    """The guest opens the dead host's log and port; the member is the same to its peers."""
    cluster = new_cluster()
    cluster.start()
    node = cluster[0]
    guest = node.attach()
    guest.call("create", text="before")
    node.kill()
    write = partial(guest.call, "create", text="after")
    until_accepted("the guest writes again", write, "HostLost", "Unavailable", "CommitOutcomeUnknown", timeout=15)
    cluster[1].call("create", text="by another node")
    cluster.converge()
    assert guest.call("status")["host"]["pid"] == guest.pid
    assert guest.call("count", text="by another node") == 1


def test_a_killed_guest_leaves_nothing_behind(alone: ClusterNode) -> None:
    """Its open transaction is rolled back and its write lease is free, at once."""
    guest = alone.attach()
    guest.call("begin")
    guest.call("lock_account", name="account 0")
    guest.call("set_balance", name="account 0", balance=1)
    waiting = alone.worker.send("create", "waiting", text="by the host") if alone.worker else None
    assert waiting is not None
    guest.kill()
    assert waiting.result(30) > 0
    assert alone.call("balances")["account 0"] == 1000
    assert alone.call("status")["lease"] is None


def test_a_stopped_guest_does_not_hold_up_the_others_for_long(alone: ClusterNode) -> None:
    """An idle holder loses the write lease when others wait; its transaction is run again when it goes on."""
    guest = alone.attach()
    guest.call("begin")
    guest.call("set_balance", name="account 0", balance=1)
    guest.pause()
    assert alone.call("create", text="while the guest stands still") > 0
    guest.signal(signal.SIGCONT)
    guest.call("commit")
    assert alone.call("balances")["account 0"] == 1


def test_a_process_that_may_not_host_says_what_is_missing(new_cluster: NewCluster) -> None:
    """host: False attaches only; without a host it fails with a text that tells what to start."""
    node = new_cluster(1)[0]
    only_guest = node.attach(host=False, timeout=1)
    with pytest.raises(RemoteError, match="raft node") as caught:
        only_guest.call("sql", query="select 1")
    assert caught.value.kind == "OperationalError"
    assert not node.name.exists(), "it may not make the database either"
    node.start()
    node.call("migrate", wait=60)
    write = partial(only_guest.call, "create", text="now there is a host")
    refusals = "Unavailable", "CommitOutcomeUnknown", "OperationalError"  # it waits for a second only
    assert until_accepted("it writes now that there is a host", write, *refusals) > 0


def test_a_host_waits_for_the_port_of_the_one_that_dies(new_cluster: NewCluster) -> None:
    """The kernel frees the lock of a killed process before its port: whoever takes the lock then tries again."""
    node = new_cluster(3, timeout=30)[0]  # who has no peers needs no port
    host, port = node.address.split(":")
    lock = node.name.with_name("db.sqlite3.raft") / "lock"
    noted: set[int] = set()
    with socket.create_server((host, int(port))):
        worker = node.start(wait=False)
        opening = worker.send("open")

        def tried_again() -> bool:
            with contextlib.suppress(FileNotFoundError):
                noted.add(lock.stat().st_mtime_ns)
            return len(noted) > 3 or opening.done()

        wait_until("it takes the lock again and again", tried_again)
        assert not opening.done(), opening.exception()
    opening.result(30)
    assert wait_until("it answers", node.status)["host"]["pid"] == worker.pid


def test_raft_status_tells_through_the_host_and_by_its_exit_status(new_cluster: NewCluster) -> None:
    """Exit status 0 with a leader in reach, 1 without; asking never hosts."""
    cluster = new_cluster()

    def status(node: ClusterNode) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(TESTPROJECT / "manage.py"), "raft", "status", "--format", "json"],
            cwd=TESTPROJECT,
            env=node_environment(node.settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert status(cluster[0]).returncode == 1
    assert not cluster[0].name.exists()
    cluster.start()

    def led() -> subprocess.CompletedProcess[str] | None:
        told = status(cluster[0])
        return told if told.returncode == 0 else None

    done = wait_until("a leader in reach", led)
    assert all(peer in done.stdout for peer in cluster.peers)
    cluster[1].kill()
    cluster[2].kill()
    wait_until("no leader in reach", lambda: status(cluster[0]).returncode == 1, 30)
