"""The shop."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Products with stock, and orders that never sell what is not there."""

    name = "shop"
