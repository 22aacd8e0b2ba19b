"""JSON endpoints."""

from django.urls import path

from . import views

app_name = "ledger"

urlpatterns = [
    path("events/", views.events, name="events"),
    path("balances/", views.balances, name="balances"),
    path("transfers/", views.transfers, name="transfers"),
]
