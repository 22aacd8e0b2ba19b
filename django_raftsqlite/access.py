"""Who may see the status and the figures of a node.

They name addresses, paths and statements, so not everybody: staff with the permission
``django_raftsqlite.view_raft``, and who sends the token of ``settings.RAFTSQLITE_STATUS_TOKEN`` (text, or a list of
texts while one is replaced by another) as ``Authorization: Bearer ...``. ``settings.RAFTSQLITE_STATUS_ACCESS`` (the
dotted path of a callable that takes the request and returns a bool) stands in the place of the rule for staff.

Not: who comes from a certain address. Behind a proxy, everybody does.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.db import Error
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string

VIEW = "django_raftsqlite.view_raft"
CHANGE = "django_raftsqlite.change_raft"
TOKEN_MINIMUM = 16
"""Characters. A shorter token opens nothing."""

View = Callable[..., HttpResponse]


def tokens() -> list[str]:
    """The tokens that open the pages for scripts."""
    value = getattr(settings, "RAFTSQLITE_STATUS_TOKEN", None)
    found = [value] if isinstance(value, str) else list(value or ())
    return [token for token in found if isinstance(token, str) and len(token) >= TOKEN_MINIMUM]


def may_look(request: HttpRequest) -> bool:
    """Whether this request may see status and figures. Raises ImportError for a wrong RAFTSQLITE_STATUS_ACCESS."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and _is_token(token.strip()):
        return True
    rule = getattr(settings, "RAFTSQLITE_STATUS_ACCESS", None)
    if rule is not None:
        return bool((import_string(rule) if isinstance(rule, str) else rule)(request))
    try:
        user: Any = getattr(request, "user", None)
        return user is not None and user.is_active and user.is_staff and user.has_perm(VIEW)
    except Error:
        return False  # who it is cannot be read from a database that does not serve


def guarded(view: View) -> View:
    """A view that answers 401 to those who may not look."""

    @wraps(view)
    def guard(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if may_look(request):
            return view(request, *args, **kwargs)
        return HttpResponse(
            "Log in as staff, or send a token (see RAFTSQLITE_STATUS_TOKEN).\n",
            status=401,
            content_type="text/plain",
            headers={"WWW-Authenticate": 'Bearer realm="raft"'},
        )

    return guard


def _is_token(given: str) -> bool:
    return any(hmac.compare_digest(given.encode(), token.encode()) for token in tokens())
