"""``manage.py seed``: fill the shelves."""

import random
from argparse import ArgumentParser
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction
from ledger.models import Account

from shop.catalogue import CATALOGUE
from shop.models import Order, Product
from shop.services import OutOfStock, place_order

CUSTOMERS = [
    "A. Lindqvist",
    "B. Okafor",
    "C. Moreau",
    "D. Yamada",
    "E. Novak",
    "F. Castillo",
    "G. Haddad",
    "H. Byrne",
]


class Command(BaseCommand):
    """Puts in what is not there yet; running it again changes nothing."""

    help = "Fills the shop with a catalogue and some orders, and the ledger with accounts."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--orders", type=int, default=25, help="orders to place in an empty shop (default: 25)")
        parser.add_argument("--accounts", type=int, default=20, help="accounts in the ledger (default: 20)")
        parser.add_argument("--admin", metavar="PASSWORD", help="make the superuser admin with this password")

    def handle(self, *_args: Any, orders: int, accounts: int, **options: Any) -> None:
        with transaction.atomic():
            products = self._products()
            Account.objects.bulk_create(
                [Account(name=f"account {number}", balance=1000) for number in range(1, accounts + 1)],
                ignore_conflicts=True,
            )
        placed = 0 if Order.objects.exists() else self._orders(orders)
        if options["admin"] and not get_user_model().objects.filter(username="admin").exists():
            get_user_model().objects.create_superuser("admin", password=options["admin"])
        self.stdout.write(f"{products} products and {placed} orders added; {Account.objects.count()} accounts")

    def _products(self) -> int:
        before = Product.objects.count()
        Product.objects.bulk_create(
            [
                Product(sku=sku, name=name, category=category, description=text, price=Decimal(price), stock=stock)
                for category, products in CATALOGUE.items()
                for sku, name, text, price, stock in products
            ],
            ignore_conflicts=True,
        )
        return Product.objects.count() - before

    def _orders(self, count: int) -> int:
        generator = random.Random(1)
        ids = list(Product.objects.filter(stock__gt=0).values_list("pk", flat=True))
        placed = 0
        for _ in range(count):
            basket = {pk: generator.randint(1, 3) for pk in generator.sample(ids, generator.randint(1, 4))}
            try:
                place_order(generator.choice(CUSTOMERS), basket)
            except OutOfStock:
                continue
            placed += 1
        return placed
