"""Rules of the ledger."""

import threading
from unittest import skipUnless

from django.db import IntegrityError, connection, transaction
from django.db.models import Sum
from django.test import TestCase, TransactionTestCase
from django.urls import reverse

from .models import Account, Event
from .services import InsufficientFunds, transfer

replicated = skipUnless(connection.settings_dict["ENGINE"] == "django_raftsqlite", "Django's own backend has no node")


class TransferTests(TransactionTestCase):
    """transfer()"""

    def setUp(self):
        self.ids = [Account.objects.create(name=f"account {number}", balance=100).pk for number in range(3)]

    def test_a_transfer_moves_money(self):
        transfer(self.ids[0], self.ids[1], 30)
        self.assertEqual(list(Account.objects.values_list("balance", flat=True)), [70, 130, 100])

    def test_a_transfer_to_oneself_changes_nothing(self):
        transfer(self.ids[0], self.ids[0], 30)
        self.assertEqual(Account.objects.get(pk=self.ids[0]).balance, 100)

    def test_what_is_not_there_cannot_be_moved(self):
        with self.assertRaises(InsufficientFunds):
            transfer(self.ids[0], self.ids[1], 101)
        with self.assertRaises(IntegrityError), transaction.atomic():
            Account.objects.filter(pk=self.ids[0]).update(balance=-1)
        self.assertEqual(Account.objects.aggregate(total=Sum("balance"))["total"], 300)

    def test_transfers_at_once_keep_the_total(self):
        def clerk(source: int, target: int) -> None:
            try:
                for _ in range(5):
                    transfer(source, target, 7)
            finally:
                connection.close()

        pairs = [(0, 1), (1, 2), (2, 0), (1, 0)]
        threads = [threading.Thread(target=clerk, args=(self.ids[a], self.ids[b])) for a, b in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(list(Account.objects.values_list("balance", flat=True)), [135, 65, 100])


class EndpointTests(TestCase):
    """The JSON endpoints."""

    def post(self, name, value):
        return self.client.post(reverse(f"ledger:{name}"), value, content_type="application/json")

    def test_an_event_is_written_and_listed(self):
        self.assertEqual(self.post("events", {"text": "one"}).status_code, 201)
        self.assertEqual(self.client.get(reverse("ledger:events")).json(), {"events": ["one"]})

    def test_a_wrong_request_is_refused(self):
        for value in ({}, "[", [1], '"x"'):
            self.assertEqual(self.post("events", value).status_code, 400)
        self.assertEqual(self.client.get(reverse("ledger:events"), {"reads": "leadr"}).status_code, 400)
        self.assertEqual(Event.objects.count(), 0)

    def test_a_transfer_answers_with_the_total_or_the_reason(self):
        first, second = (Account.objects.create(name=name, balance=10).pk for name in "ab")
        moved = self.post("transfers", {"source": first, "target": second, "amount": 4})
        self.assertEqual((moved.status_code, moved.json()), (200, {"total": 20}))
        refused = self.post("transfers", {"source": first, "target": second, "amount": 7})
        self.assertEqual(refused.status_code, 409)
        balances = self.client.get(reverse("ledger:balances")).json()
        self.assertEqual(balances, {"total": 20, "accounts": {str(first): 6, str(second): 14}})

    @replicated
    def test_linearizable_reads_are_on_request(self):
        self.post("events", {"text": "one"})
        response = self.client.get(reverse("ledger:events"), {"reads": "leader"})
        self.assertEqual(response.json(), {"events": ["one"]})
