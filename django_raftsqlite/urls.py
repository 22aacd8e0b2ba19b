"""``path("raft/", include("django_raftsqlite.urls"))``: probes for everybody, state and figures for those who may."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "django_raftsqlite"

urlpatterns = [
    path("livez", views.livez, name="livez"),
    path("readyz", views.readyz, name="readyz"),
    path("status", views.status, name="status"),
    path("metrics", views.metrics, name="metrics"),
]
