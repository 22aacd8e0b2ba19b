"""The shop, the JSON endpoints for scripts, and the admin."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/", include("ledger.urls")),
    path("", include("shop.urls")),
]
