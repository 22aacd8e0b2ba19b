"""Moving money."""

from django.db import transaction

from .models import Account


class InsufficientFunds(Exception):
    """The account holds less than the amount."""


@transaction.atomic
def transfer(source: int, target: int, amount: int) -> None:
    """Move ``amount`` between two accounts (primary keys). Raises InsufficientFunds."""
    first, second = sorted((source, target))
    accounts = {
        first: Account.objects.select_for_update().get(pk=first),
        second: Account.objects.select_for_update().get(pk=second),
    }
    if accounts[source].balance < amount:
        raise InsufficientFunds(f"account {source} holds {accounts[source].balance}, less than {amount}")
    accounts[source].balance -= amount
    accounts[target].balance += amount
    accounts[source].save(update_fields=["balance"])
    accounts[target].save(update_fields=["balance"])
