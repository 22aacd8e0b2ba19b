"""Several groups behind Django's database routers, as docs/outgrowing.md says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "outgrowing.md"

SETTINGS = """
from project.settings import *

DATABASES["events"] = {"ENGINE": "django_raftsqlite", "NAME": DATA_DIR / "events.sqlite3"}
DATABASE_ROUTERS = ["routing.Router"]
"""

SITE = """
import threading
from django.core.management import call_command
from django.db import connections, transaction
from ledger.models import Event
from shop.models import Order

for alias in ("default", "events"):
    call_command("migrate", database=alias, verbosity=0)
for alias in ("default", "events"):
    tables = connections[alias].introspection.table_names()
    print(alias, "ledger_event" in tables, "shop_order" in tables)

# Each group has a write lease of its own: another thread writes to the one while this one holds the other's.
def write():
    Event.objects.create(text="meanwhile")
    connections.close_all()

with transaction.atomic(using="default"):
    Order.objects.create(customer="somebody")
    thread = threading.Thread(target=write)
    thread.start()
    thread.join(30)
    print("written meanwhile:", list(Event.objects.values_list("text", flat=True)))
    transaction.set_rollback(True, using="default")
print(Event.objects.db, Event.objects.count(), Order.objects.db, Order.objects.count())
"""


def test_an_app_in_a_group_of_its_own_by_the_router_of_the_page(tmp_path: Path) -> None:
    """Its tables are there and nowhere else, and its transactions wait for nobody of the other group."""
    (router,) = re.findall(r"```python\n(class Router:.*?)```", PAGE.read_text(), re.DOTALL)
    assert router.count('app_label == "events"') == 4
    (tmp_path / "routing.py").write_text(router.replace('label == "events"', 'label == "ledger"'))
    (tmp_path / "two_groups.py").write_text(SETTINGS)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{ROOT / 'testproject'}:{ROOT}",
        "DJANGO_SETTINGS_MODULE": "two_groups",
        "TESTPROJECT_DATA": str(tmp_path / "data"),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "django", "shell", "--verbosity", "0", "--command", SITE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "default False True",
        "events True False",
        "written meanwhile: ['meanwhile']",
        "events 1 default 0",
    ]
