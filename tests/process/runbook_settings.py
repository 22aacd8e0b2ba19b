"""The test project without what costs time at the start of each of many short commands: its pages and the admin."""

from project.settings import *  # noqa: F403

INSTALLED_APPS = ["django_raftsqlite", "ledger"]
MIDDLEWARE: list[str] = []
TEMPLATES: list[dict[str, object]] = []
ROOT_URLCONF = __name__
urlpatterns: list[object] = []
