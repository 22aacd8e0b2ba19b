"""The shop's pages."""

from django.urls import path

from . import views

app_name = "shop"

urlpatterns = [
    path("", views.product_list, name="products"),
    path("buy/", views.buy, name="buy"),
    path("orders/", views.order_list, name="orders"),
    path("node/", views.node, name="node"),
    path("node.json", views.node_json, name="node-json"),
]
