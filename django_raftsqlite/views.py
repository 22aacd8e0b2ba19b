"""Probes for load balancers and orchestrators, and the state of the nodes for scripts and Prometheus."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db import Error
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .access import guarded
from .readiness import Demands, why_not_ready
from .status import aliases, node_status

PLAIN = "text/plain; charset=utf-8"


class BadQuery(ValueError):
    """A parameter of the query cannot be used; the text says why."""


@require_safe
@never_cache
def livez(_request: HttpRequest) -> HttpResponse:
    """This process answers. The group is not looked at, since to restart a process does not heal a group."""
    return HttpResponse("ok\n", content_type=PLAIN)


@require_safe
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when the nodes of all aliases (or ``?database=``) are ready, else 503 and why, in a few words.

    ``?leader``, ``?max_lag=ENTRIES`` and ``?sync`` (``?sync=SECONDS``): see :class:`~.readiness.Demands`.
    """
    try:
        demands, asked = _demands(request), _aliases(request)
    except BadQuery as error:
        return HttpResponse(f"{error}\n", status=400, content_type=PLAIN)
    faults = [f"{alias}: {why}" for alias in asked if (why := why_not_ready(alias, demands)) is not None]
    text = "".join(f"not ready: {fault}\n" for fault in faults) or "ok\n"
    return HttpResponse(text, status=503 if faults else 200, content_type=PLAIN)


@require_safe
@never_cache
@guarded
def status(request: HttpRequest) -> HttpResponse:
    """``{alias: status}``, each as ``manage.py raft status --format json`` prints it, or ``{"error": text}``.

    503 when none of the nodes answered.
    """
    try:
        asked = _aliases(request)
    except BadQuery as error:
        return HttpResponse(f"{error}\n", status=400, content_type=PLAIN)
    told = {}
    for alias in asked:
        try:
            told[alias] = node_status(alias)
        except (Error, ImproperlyConfigured) as error:
            told[alias] = {"error": str(error)}
    answered = any("error" not in each for each in told.values())
    return JsonResponse(told, status=200 if answered else 503, json_dumps_params={"indent": 2})


@require_safe
@never_cache
@guarded
def metrics(_request: HttpRequest) -> HttpResponse:
    """The figures of all nodes in Prometheus's text format; 501 without prometheus_client."""
    try:
        from .metrics import exposition  # noqa: PLC0415 - an optional extra
    except ImportError:
        text = 'prometheus_client is not installed: pip install "django-raftsqlite[metrics]"\n'
        return HttpResponse(text, status=501, content_type=PLAIN)
    content, content_type = exposition()
    return HttpResponse(content, content_type=content_type)


def _aliases(request: HttpRequest) -> list[str]:
    known = aliases()
    asked = request.GET.getlist("database") or known
    for alias in asked:
        if alias not in known:
            raise BadQuery("no such database")
    return asked


def _demands(request: HttpRequest) -> Demands:
    query = request.GET
    max_lag, sync = query.get("max_lag"), query.get("sync")
    if max_lag is not None and not (max_lag.isascii() and max_lag.isdigit() and len(max_lag) < 19):
        raise BadQuery("max_lag: write a number of log entries, such as 100")
    timeout = None
    if sync:
        try:
            timeout = float(sync)
        except ValueError:
            timeout = 0.0
        if not 0 < timeout <= 60:
            raise BadQuery("sync: write a number of seconds from 0 to 60, or nothing")
    return Demands(
        leader="leader" in query,
        max_lag=None if max_lag is None else int(max_lag),
        sync=sync is not None,
        timeout=timeout,
    )
