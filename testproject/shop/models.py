"""What is sold, and what was ordered."""

from decimal import Decimal

from django.db import models
from django.db.models import F, Q, Sum


class Product(models.Model):
    """Something to buy. ``stock`` (pieces) is guarded by the database as well as by :mod:`.services`."""

    sku = models.CharField("article number", max_length=12, unique=True)
    name = models.CharField(max_length=80)
    category = models.CharField(max_length=40, db_index=True)
    description = models.CharField(max_length=200, blank=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(default=0)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["category", "name"]
        constraints = [
            models.CheckConstraint(condition=Q(stock__gte=0), name="stock_is_never_negative"),
            models.CheckConstraint(condition=Q(price__gte=0), name="price_is_never_negative"),
        ]

    def __str__(self):
        return self.name


class Order(models.Model):
    """What one customer bought at once."""

    customer = models.CharField(max_length=80)
    placed = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        ordering = ["-placed", "-pk"]

    def __str__(self):
        return f"Order {self.pk} of {self.customer}"

    @property
    def total(self):
        """The sum of all lines."""
        return self.lines.aggregate(total=Sum(F("quantity") * F("unit_price")))["total"] or Decimal(0)


class OrderLine(models.Model):
    """One product of an order, at the price of that day."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.PROTECT, related_name="lines")
    quantity = models.PositiveIntegerField()
    unit_price = models.DecimalField(max_digits=8, decimal_places=2)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(quantity__gt=0), name="quantity_is_positive"),
            models.UniqueConstraint(fields=["order", "product"], name="one_line_per_product"),
        ]

    def __str__(self):
        return f"{self.quantity} x {self.product}"

    @property
    def total(self):
        """Pieces times price."""
        return self.quantity * self.unit_price
