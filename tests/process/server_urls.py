"""Views that no project should have, or that only the tests need."""

from __future__ import annotations

import json
import time

from asgiref.sync import sync_to_async
from django.db import transaction
from django.db.models import Sum
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from ledger.models import Account, Event
from ledger.services import transfer

from django_raftsqlite import reads


@csrf_exempt
def hang(request: HttpRequest) -> JsonResponse:
    """Stands still in the middle of a transaction that holds the write lease."""
    with transaction.atomic():
        Event.objects.create(text=json.loads(request.body)["text"])
        time.sleep(60)
    return JsonResponse({})


@csrf_exempt
async def aevents(request: HttpRequest) -> JsonResponse:
    """As ledger.views.events, with the asynchronous ORM."""
    if request.method == "POST":
        text = json.loads(request.body)["text"]
        event = await Event.objects.acreate(text=text)
        found = await Event.objects.aget(pk=event.pk)
        assert found.text == text
        assert [row.pk async for row in Event.objects.filter(text=text)] == [event.pk]
        return JsonResponse({"id": event.pk}, status=201)
    async with reads("leader"):
        return JsonResponse({"events": [text async for text in Event.objects.values_list("text", flat=True)]})


async def abalances(request: HttpRequest) -> JsonResponse:
    """As ledger.views.balances."""
    accounts = {pk: balance async for pk, balance in Account.objects.values_list("pk", "balance")}
    return JsonResponse({"total": sum(accounts.values()), "accounts": accounts})


@csrf_exempt
async def atransfers(request: HttpRequest) -> JsonResponse:
    """As ledger.views.transfers: atomic() is for synchronous code, which runs in a thread."""
    wanted = json.loads(request.body)
    await sync_to_async(transfer)(wanted["source"], wanted["target"], wanted["amount"])
    return JsonResponse(await Account.objects.aaggregate(total=Sum("balance")))


urlpatterns = [
    path("hang/", hang),
    path("async/events/", aevents),
    path("async/balances/", abalances),
    path("async/transfers/", atransfers),
    path("", include("project.urls")),
]
