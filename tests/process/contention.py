"""The loop that every application has somewhere, run by many threads at once without any code for retries."""

from __future__ import annotations

import threading
from collections import Counter

from django.db import connection, transaction
from ledger.models import Account


def contend(names: list[str], rounds: int, *, locked: bool) -> dict[str, int]:
    """One thread per name: get the account, add 1, save it, ``rounds`` times; how often each outcome was met.

    An outcome is ``"ok"``, or an error's class and text.
    """
    outcomes: Counter[str] = Counter()
    mutex = threading.Lock()
    together = threading.Barrier(len(names))

    def work(name: str) -> None:
        try:
            connection.ensure_connection()
            together.wait(60)
            for _ in range(rounds):
                outcome = _add_one(name, locked=locked)
                with mutex:
                    outcomes[outcome] += 1
        except BaseException as error:
            with mutex:
                outcomes[f"the thread ended: {error!r}"] += 1
            raise
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(outcomes)


def _add_one(name: str, *, locked: bool) -> str:
    try:
        with transaction.atomic():
            rows = Account.objects.select_for_update() if locked else Account.objects
            account = rows.get(name=name)
            account.balance += 1
            account.save()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "ok"
