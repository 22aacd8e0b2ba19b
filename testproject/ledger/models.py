"""The workloads that faults are injected into."""

from django.db import models
from django.db.models import Q


class Account(models.Model):
    """Money; the sum over all accounts never changes."""

    name = models.CharField(max_length=40, unique=True)
    balance = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["pk"]
        constraints = [models.CheckConstraint(condition=Q(balance__gte=0), name="balance_is_never_negative")]

    def __str__(self):
        return self.name


class Event(models.Model):
    """Something that was acknowledged once and must be there once.

    The text is not declared unique: a write that is applied twice must show as two rows, not as an error.
    """

    text = models.CharField(max_length=80, db_index=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]

    def __str__(self):
        return self.text


class Series(models.Model):
    """A list that is only appended to, in one column: who writes back an old state takes others' values away."""

    name = models.CharField(max_length=40, unique=True)
    items = models.TextField(default="", blank=True)  # values with a comma behind each

    class Meta:
        ordering = ["pk"]
        verbose_name_plural = "series"

    def __str__(self):
        return self.name


class Entry(models.Model):
    """A value of a list in rows, in the order of their keys: who reads the list is hurt by rows that appear."""

    series = models.CharField(max_length=40, db_index=True)
    value = models.CharField(max_length=80)

    class Meta:
        ordering = ["pk"]
        verbose_name_plural = "entries"

    def __str__(self):
        return self.value
