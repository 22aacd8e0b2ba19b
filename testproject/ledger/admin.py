"""The ledger in the admin."""

from django.contrib import admin

from .models import Account, Event

admin.site.register(Account, list_display=["name", "balance"])
admin.site.register(Event, list_display=["text", "created"], search_fields=["text"])
