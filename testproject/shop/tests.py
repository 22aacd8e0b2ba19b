"""Rules of the shop."""

import threading
from decimal import Decimal
from io import StringIO
from unittest import skipUnless

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase
from django.urls import reverse

from .catalogue import CATALOGUE
from .models import Order, OrderLine, Product
from .services import OutOfStock, place_order

replicated = skipUnless(connection.settings_dict["ENGINE"] == "django_raftsqlite", "Django's own backend has no node")


def make_product(name: str = "Pencil", *, stock: int = 5, price: str = "1.50") -> Product:
    """A product with an article number of its own."""
    return Product.objects.create(sku=name.upper()[:12], name=name, category="Pencils", price=price, stock=stock)


class OrderingTests(TestCase):
    """place_order()"""

    def test_an_order_takes_its_pieces_out_of_stock(self):
        pencil, pen = make_product(), make_product("Pen", price="4.00")
        order = place_order("Ann", {pencil.pk: 2, pen.pk: 1})
        pencil.refresh_from_db()
        self.assertEqual(pencil.stock, 3)
        self.assertEqual(order.total, Decimal("7.00"))

    def test_an_order_is_all_or_nothing(self):
        pencil, pen = make_product(), make_product("Pen", stock=1)
        with self.assertRaisesMessage(OutOfStock, "Pen: 2 ordered, 1 in stock"):
            place_order("Ann", {pencil.pk: 2, pen.pk: 2})
        pencil.refresh_from_db()
        self.assertEqual((pencil.stock, Order.objects.count()), (5, 0))

    def test_what_is_not_sold_cannot_be_ordered(self):
        with self.assertRaises(Product.DoesNotExist):
            place_order("Ann", {make_product().pk + 1: 1})

    def test_an_order_keeps_the_price_of_its_day(self):
        pencil = make_product()
        order = place_order("Ann", {pencil.pk: 1})
        Product.objects.update(price=9)
        self.assertEqual(order.total, Decimal("1.50"))

    def test_an_empty_basket_is_no_order(self):
        with self.assertRaises(ValueError):
            place_order("Ann", {})

    def test_the_database_guards_the_stock_too(self):
        pencil = make_product()
        with self.assertRaises(IntegrityError), transaction.atomic():
            Product.objects.filter(pk=pencil.pk).update(stock=-1)

    def test_a_product_that_was_ordered_cannot_vanish(self):
        pencil = make_product()
        place_order("Ann", {pencil.pk: 1})
        with self.assertRaises(IntegrityError):
            pencil.delete()


class ConcurrentOrderingTests(TransactionTestCase):
    """Several customers at once, each with a connection of its own."""

    def test_never_more_is_sold_than_there_was(self):
        pencil = make_product(stock=7)
        sold, failed = [], []

        def customer(name: str) -> None:
            try:
                for _ in range(3):
                    try:
                        sold.append(place_order(name, {pencil.pk: 1}))
                    except OutOfStock:
                        failed.append(name)
            finally:
                connection.close()

        threads = [threading.Thread(target=customer, args=(f"customer {number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pencil.refresh_from_db()
        self.assertEqual((len(sold), len(failed), pencil.stock), (7, 5, 0))
        self.assertEqual(OrderLine.objects.count(), 7)


class PageTests(TestCase):
    """The pages."""

    def test_the_shop_shows_what_it_sells_by_category(self):
        make_product()
        Product.objects.create(sku="INK", name="Ink", category="Ink", price=3, stock=0)
        response = self.client.get(reverse("shop:products"))
        self.assertContains(response, "Pencil")
        self.assertContains(response, "sold out")
        response = self.client.get(reverse("shop:products"), {"category": "Ink"})
        self.assertNotContains(response, "5 in stock")

    def test_an_empty_shop_says_how_to_fill_it(self):
        self.assertContains(self.client.get(reverse("shop:products")), "manage.py seed")

    def test_buying_answers_with_the_order(self):
        wanted = {"product": make_product().pk, "quantity": 2, "customer": "Ann"}
        response = self.client.post(reverse("shop:buy"), wanted, follow=True)
        self.assertContains(response, "Thank you, Ann")
        self.assertContains(response, "3.00 EUR")
        self.assertContains(self.client.get(reverse("shop:orders")), "2 × Pencil")  # noqa: RUF001

    def test_buying_says_why_not(self):
        pencil = make_product(stock=1)
        for wanted, answer in [
            ({"product": pencil.pk, "quantity": 2, "customer": "Ann"}, "Sold out: Pencil: 2 ordered, 1 in stock"),
            ({"product": pencil.pk, "quantity": 0, "customer": "Ann"}, "quantity from 1 to 99"),
            ({"product": pencil.pk, "quantity": 1, "customer": " "}, "Please give your name"),
            ({"product": pencil.pk + 1, "quantity": 1, "customer": "Ann"}, "not sold any more"),
        ]:
            with self.subTest(wanted=wanted):
                self.assertContains(self.client.post(reverse("shop:buy"), wanted, follow=True), answer)
        self.assertEqual(Order.objects.count(), 0)

    def test_what_a_customer_types_is_escaped(self):
        place_order("<script>alert(1)</script>", {make_product().pk: 1})
        self.assertNotContains(self.client.get(reverse("shop:orders")), "<script>alert")

    @replicated
    def test_the_node_page_names_the_node_its_role_and_its_lag(self):
        response = self.client.get(reverse("shop:node"))
        self.assertContains(response, "<code>localhost</code>")
        self.assertContains(response, "leader")
        self.assertContains(response, "0 entries")
        described = self.client.get(reverse("shop:node-json")).json()
        self.assertEqual((described["node"], described["role"], described["lag"]), ("localhost", "leader", 0))

    @replicated
    def test_every_page_says_which_node_served_it(self):
        for page in ("products", "orders", "node"):
            self.assertContains(self.client.get(reverse(f"shop:{page}")), "Served by")

    def test_the_admin_edits_stock_in_the_list(self):
        pencil = make_product()
        self.client.force_login(get_user_model().objects.create_superuser("admin"))
        self.assertContains(self.client.get(reverse("admin:shop_order_changelist")), "orders")
        url = reverse("admin:shop_product_changelist")
        self.assertContains(self.client.get(url), "Pencil")
        form = {"form-TOTAL_FORMS": 1, "form-INITIAL_FORMS": 1, "form-0-id": pencil.pk}
        self.client.post(url, {**form, "form-0-price": "2.00", "form-0-stock": 9, "_save": "Save"})
        pencil.refresh_from_db()
        self.assertEqual((pencil.stock, pencil.price), (9, Decimal("2.00")))


class SeedTests(TestCase):
    """manage.py seed"""

    def test_seeding_twice_is_seeding_once(self):
        out = StringIO()
        for _ in range(2):
            call_command("seed", orders=3, accounts=4, admin="secret", stdout=out)
        self.assertEqual(Product.objects.count(), sum(map(len, CATALOGUE.values())))
        self.assertEqual(Order.objects.count(), 3)
        self.assertIn("0 products and 0 orders added; 4 accounts", out.getvalue())
        self.assertTrue(self.client.login(username="admin", password="secret"))  # noqa: S106
