"""The page ``Raft`` in the Django admin: one glance at the group, and buttons; with no model and no migration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import Error
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from .access import CHANGE as MAY_ACT
from .access import VIEW as MAY_LOOK
from .actions import ACTIONS, Action, ActionFailed, find
from .permissions import APP, MODEL
from .picture import Picture, broken, picture
from .status import aliases, node_figures, node_status


class _Options:
    """As much of a model's ``_meta`` as the admin asks for to have an entry in its index."""

    app_label = APP
    model_name = MODEL
    object_name = "Raft"
    verbose_name = verbose_name_plural = "Raft"
    abstract = swapped = is_composite_pk = False
    concrete_model = None

    @property
    def app_config(self) -> Any:
        return apps.get_app_config(APP)


class Raft:
    """Stands in the place of a model."""

    _meta = _Options()


class RaftAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Looks, and lets staff act; each action is confirmed, and noted in the admin's log."""

    def check(self, **_kwargs: Any) -> list[Any]:
        return []  # of a model, of which there is none

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        user: Any = request.user
        return bool(user.has_perm(MAY_LOOK) or user.has_perm(MAY_ACT))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        user: Any = request.user
        return bool(user.has_perm(MAY_ACT))

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def get_urls(self) -> list[Any]:
        wrap = self.admin_site.admin_view
        name = f"{APP}_{MODEL}"
        return [
            path("", wrap(never_cache(require_safe(self.page))), name=f"{name}_changelist"),
            path("<str:alias>/", wrap(never_cache(require_safe(self.page))), name=f"{name}_change"),
            path("<str:alias>/live/", wrap(never_cache(require_safe(self.live))), name=f"{name}_live"),
            path("<str:alias>/<slug:action>/", wrap(never_cache(require_POST(self.act))), name=f"{name}_act"),
        ]

    # Views

    def page(self, request: HttpRequest, alias: str | None = None) -> HttpResponse:
        """The page of one alias; of the first one where none is named."""
        known = self._known(request, alias)
        chosen = alias or next(iter(known), None)
        context = {**self._context(request), "aliases": known, "title": "Raft"}
        if chosen is not None:
            context |= self._shown(request, chosen)
        return TemplateResponse(request, "django_raftsqlite/page.html", context)

    def live(self, request: HttpRequest, alias: str) -> HttpResponse:
        """What of the page changes, for its script."""
        self._known(request, alias)
        return TemplateResponse(request, "django_raftsqlite/live.html", self._shown(request, alias))

    def act(self, request: HttpRequest, alias: str, action: str) -> HttpResponse:
        """Ask, and with ``confirmed`` do it."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        self._known(request, alias)
        found = find(action)
        member = request.POST.get("member", "")
        if found is None or bool(member) != found.about_member:
            raise Http404
        back = reverse(f"{self.admin_site.name}:{APP}_{MODEL}_change", args=[alias])
        if "confirmed" not in request.POST:
            context = {**self._context(request), "action": found, "alias": alias, "member": member, "back": back}
            context["title"] = f"{found.label}: {member or alias}"
            return TemplateResponse(request, "django_raftsqlite/confirm.html", context)
        self._do(request, found, alias, member)
        return HttpResponseRedirect(back)

    # Inside

    def _do(self, request: HttpRequest, action: Action, alias: str, member: str) -> None:
        missing = action.missing(alias)
        try:
            if missing is not None:
                raise ActionFailed(missing)
            told, level = action.run(alias, member), messages.SUCCESS
        except (ActionFailed, Error) as error:
            told, level = f"{action.label}: not done. {error}", messages.ERROR
        self.message_user(request, told, level, fail_silently=True)
        what = " ".join(filter(None, [action.label, member]))
        try:
            self._note(request, alias, f"{what}: {told}")
        except Error as error:
            self.message_user(
                request, f"This could not be noted in the admin's log: {error}", messages.WARNING, fail_silently=True
            )

    def _note(self, request: HttpRequest, alias: str, text: str) -> None:
        kind, _ = ContentType.objects.get_or_create(app_label=APP, model=MODEL)
        LogEntry.objects.create(
            user_id=request.user.pk,
            content_type=kind,
            object_id=alias,
            object_repr=f"Raft group {alias}"[:200],
            action_flag=CHANGE,
            change_message=text,
        )

    def _known(self, request: HttpRequest, alias: str | None) -> list[str]:
        """All aliases, for who may look. Raises PermissionDenied, and Http404 where ``alias`` is none of them."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        known = aliases()
        if alias is not None and alias not in known:
            raise Http404
        return known

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        # base.html looks for an app's and a model's names.
        return {**self.admin_site.each_context(request), "opts": self.opts, "media": self.media, "is_popup": False}

    def _shown(self, request: HttpRequest, alias: str) -> dict[str, Any]:
        shown, status = _look(alias)
        may_act = self.has_change_permission(request)
        buttons = [
            SimpleNamespace(action=action, missing=action.missing(alias))
            for action in ACTIONS
            if may_act and not action.about_member
        ]
        of_members = {
            member["address"]: [
                action for action in ACTIONS if may_act and action.about_member and action.offered(status, member)
            ]
            for member in status.get("members", ())
        }
        return {
            "picture": shown,
            "buttons": buttons,
            "rows": [(row, of_members[row.address]) for row in shown.members],
            "acts_on_members": any(of_members.values()),
            "urls": f"{self.admin_site.name}:{APP}_{MODEL}",
            "alias": alias,
        }


def _look(alias: str) -> tuple[Picture, dict[str, Any]]:
    try:
        status = node_status(alias)
        return picture(alias, status, node_figures(alias)["recent"]), status
    except (Error, ImproperlyConfigured) as error:
        return broken(alias, error), {}


admin.site.register([Raft], RaftAdmin)
