"""What the shop does, in transactions."""

from collections.abc import Mapping

from django.db import transaction

from django_raftsqlite import TransactionConflict

from .models import Order, OrderLine, Product

ATTEMPTS = 5


class OutOfStock(Exception):
    """There are fewer pieces than were ordered."""

    def __init__(self, product: Product, quantity: int) -> None:
        super().__init__(f"{product.name}: {quantity} ordered, {product.stock} in stock")
        self.product = product


def place_order(customer: str, basket: Mapping[int, int]) -> Order:
    """Order ``basket`` (product id to pieces), all or nothing, and take the pieces out of stock.

    Raises OutOfStock and Product.DoesNotExist. Called outside a transaction, it tries again after a conflict with
    a transaction of another node, as any such code should.
    """
    if transaction.get_connection().in_atomic_block:
        return _place_order(customer, basket)
    for _ in range(ATTEMPTS - 1):
        try:
            return _place_order(customer, basket)
        except TransactionConflict:
            continue
    return _place_order(customer, basket)


@transaction.atomic
def _place_order(customer: str, basket: Mapping[int, int]) -> Order:
    if not basket:
        raise ValueError("the basket is empty")
    # In one order always, so that two orders of the same products could not wait for each other.
    products = {
        product.pk: product for product in Product.objects.select_for_update().filter(pk__in=basket).order_by("pk")
    }
    missing = set(basket) - set(products)
    if missing:
        raise Product.DoesNotExist(f"no product {min(missing)}")
    order = Order.objects.create(customer=customer)
    for pk, product in products.items():
        quantity = basket[pk]
        if product.stock < quantity:
            raise OutOfStock(product, quantity)
        product.stock -= quantity
        product.save(update_fields=["stock", "updated"])
        OrderLine.objects.create(order=order, product=product, quantity=quantity, unit_price=product.price)
    return order
