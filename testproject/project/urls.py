"""The shop, the JSON endpoints for scripts, the admin, and the probes of the node."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/", include("ledger.urls")),
    path("raft/", include("django_raftsqlite.urls")),
    path("", include("shop.urls")),
]
