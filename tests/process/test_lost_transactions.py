"""A transaction that was lost is told to the application, however it goes on."""

from __future__ import annotations

import pytest

from .cluster import RemoteError
from .conftest import NewCluster


@pytest.mark.parametrize("then", ["commit", "write"])
def test_a_conflict_that_an_undone_inner_block_met_is_not_swallowed(new_cluster: NewCluster, then: str) -> None:
    """Django hides errors of ROLLBACK TO: the end of the outer block must not look as if it had been committed."""
    cluster = new_cluster(1)
    cluster.start()
    cluster[0].call("open_accounts", number=2)
    process = cluster[0]
    process.call("begin")
    process.call("lock_account", name="account 0")
    process.call("set_balance", name="account 0", balance=1)
    process.call("begin")
    process.call("set_balance", name="account 1", balance=2)
    process.call("set_balance", "other", name="account 0", balance=3)  # gets the write lease from the idle holder
    process.call("undo")
    with pytest.raises(RemoteError) as caught:
        if then == "write":
            process.call("set_balance", name="account 1", balance=4)
        process.call("commit")
    assert caught.value.kind == "TransactionConflict"
    if then == "write":
        process.call("undo")
    balances = process.call("balances")
    assert (balances["account 0"], balances["account 1"]) == (3, 1000)
    assert process.call("create", text="the connection is of use again") > 0
