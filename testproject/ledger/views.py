"""JSON for the scripts that write while nodes are killed."""

import json

from django.db import OperationalError
from django.db.models import Sum
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from django_raftsqlite import reads

from .models import Account, Event
from .services import InsufficientFunds, transfer


@csrf_exempt
@require_http_methods(["GET", "POST"])
def events(request: HttpRequest) -> JsonResponse:
    """POST ``{"text": ...}`` writes one event (201); GET lists the texts, with ``?reads=leader`` linearizably."""
    try:
        if request.method == "POST":
            event = Event.objects.create(text=json.loads(request.body)["text"])
            return JsonResponse({"id": event.pk, "text": event.text}, status=201)
        with reads(_level(request)):
            return JsonResponse({"events": list(Event.objects.values_list("text", flat=True))})
    except OperationalError as error:
        return _unavailable(error)
    except (KeyError, TypeError, ValueError) as error:
        return JsonResponse({"error": repr(error)}, status=400)


@require_GET
def balances(request: HttpRequest) -> JsonResponse:
    """The total and every balance, in one snapshot."""
    try:
        with reads(_level(request)):
            accounts = dict(Account.objects.values_list("pk", "balance"))
    except OperationalError as error:
        return _unavailable(error)
    except ValueError as error:
        return JsonResponse({"error": repr(error)}, status=400)
    return JsonResponse({"total": sum(accounts.values()), "accounts": accounts})


@csrf_exempt
@require_POST
def transfers(request: HttpRequest) -> JsonResponse:
    """POST ``{"source": id, "target": id, "amount": n}`` moves money (200), or says why not (409)."""
    try:
        wanted = json.loads(request.body)
        transfer(int(wanted["source"]), int(wanted["target"]), int(wanted["amount"]))
    except (InsufficientFunds, Account.DoesNotExist) as error:
        return JsonResponse({"error": str(error)}, status=409)
    except OperationalError as error:
        return _unavailable(error)
    except (KeyError, TypeError, ValueError) as error:
        return JsonResponse({"error": repr(error)}, status=400)
    return JsonResponse({"total": Account.objects.aggregate(total=Sum("balance"))["total"]})


def _level(request: HttpRequest) -> str:
    return request.GET.get("reads", "session")


def _unavailable(error: OperationalError) -> JsonResponse:
    return JsonResponse({"error": str(error), "kind": type(error).__name__}, status=503)
