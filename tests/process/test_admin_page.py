"""The admin's page in a real browser: a live group, whose leader is killed while the page is open.

Needs Chromium (Debian: ``apt-get install chromium``); RAFTSQLITE_CHROMIUM names another program. With
RAFTSQLITE_SCREENSHOTS=1 the pictures in docs/images are made anew, which takes some minutes.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from .running import NODES, Cluster, start, until

__all__ = ["start"]

CHROMIUM = os.environ.get("RAFTSQLITE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = os.environ.get("RAFTSQLITE_SCREENSHOTS") == "1"
IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
PATIENCE = 30_000
"""Milliseconds."""
HISTORY = 150.0
"""Seconds of writes before a picture is taken."""
PATH = "/admin/django_raftsqlite/raft/"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(900 if PICTURES else 240),
]

CONTRAST = """(selectors) => {
  const channels = (color) => {
    const [r, g, b, a] = color.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], alpha: a === undefined ? 1 : a };
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const { rgb, alpha } = channels(getComputedStyle(each).backgroundColor);
      if (alpha > 0.99) return rgb;
    }
    return [255, 255, 255];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratios = {};
  for (const selector of selectors) {
    for (const element of document.querySelectorAll(selector)) {
      const [one, two] = [light(channels(getComputedStyle(element).color).rgb), light(ground(element))];
      const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
      ratios[selector] = Math.min(ratios[selector] || 99, ratio);
    }
  }
  return ratios;
}"""
"""The contrast of texts with what is behind them, as WCAG 2.1 has it."""

TEXTS = [
    ".raft-summary",
    ".raft-warning",
    ".raft-facts dt",
    ".raft-facts dd",
    ".raft-now",
    ".raft-axis",
    ".raft-state",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def cluster(start: Callable[..., Cluster]) -> Iterator[Cluster]:
    """Three nodes with their pages, and somebody who writes on all of them."""
    made = start("--noreload", "--no-restart", "--migrate", "--run", "seed --admin admin --orders 3")
    made.wait_for(r"^seed +\| 42 products")
    made.ready()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.wait(0.02 + 0.05 * (number % 7 == 0)):
            number += 1
            url = f"http://127.0.0.1:{made.port + number % NODES}/api/events/"
            try:
                with urllib.request.urlopen(url, json.dumps({"text": f"e{number}"}).encode(), timeout=5) as answer:
                    answer.read()
            except (OSError, http.client.HTTPException):
                pass  # one of them was killed

    thread = threading.Thread(target=write)
    thread.start()
    yield made
    stop.set()
    thread.join()


class Visitor:
    """A page of one node in a browser window, logged in. ``faults`` are what its scripts threw."""

    def __init__(self, browser: Browser, port: int, **window: Any) -> None:
        self.context = browser.new_context(**window)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(f"http://127.0.0.1:{port}/admin/login/?next={PATH}")
        self.page.fill("#id_username", "admin")
        self.page.fill("#id_password", "admin")
        self.page.click("input[type=submit]")
        expect(self.page.locator("#raft-live")).to_be_visible(timeout=PATIENCE)

    def sees(self, selector: str, text: str | re.Pattern[str]) -> None:
        """Wait until it is there."""
        expect(self.page.locator(selector)).to_contain_text(text, timeout=PATIENCE)


@pytest.fixture
def visit(browser: Browser, cluster: Cluster) -> Iterator[Callable[..., Visitor]]:
    """Opens windows: of the node with that number."""
    made: list[Visitor] = []

    def open_window(node: int, **window: Any) -> Visitor:
        made.append(Visitor(browser, cluster.port + node - 1, **window))
        return made[-1]

    yield open_window
    for visitor in made:
        visitor.context.close()


def test_the_page_of_a_live_group_while_its_leader_is_killed(cluster: Cluster, visit: Callable[..., Visitor]) -> None:
    """One visitor, without a reload: all is there; a verification; the leader dies; then the page's own node does."""
    pids = cluster.ready()
    leader = cluster.leader()
    address = cluster.raft_address(leader)
    own = leader % NODES + 1
    visitor = visit(own, viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = visitor.page
    check_what_is_there(visitor, address)
    check_the_keyboard(visitor)
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        window = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme, "is_mobile": width < 500}
        check_it_can_be_read(visit(own, **window), width)
    verify(visitor)
    leader = next(node for node in pids if node not in {leader, own})
    address = cluster.raft_address(leader)
    hand_over(visitor, address)

    page.locator("details summary").click()
    page.locator(".raft-plot").first.focus()
    page.evaluate("window.loadedOnce = true; window.heading = document.querySelector('.raft-members caption')")
    os.kill(pids[leader], signal.SIGKILL)
    visitor.sees(".raft-summary", re.compile(rf"(?!{address})127\.0\.0\.1:\d+ leads, 2 of 3 members are in reach"))
    visitor.sees(".raft-warnings", f"Not in reach: {address}. One more lost, and nothing can be written.")
    expect(page.locator("tr.raft-away")).to_have_count(1, timeout=PATIENCE)
    visitor.sees("tr.raft-away", address)
    assert page.evaluate("window.loadedOnce && window.heading.isConnected"), (
        "the page was brought up to date, not made anew"
    )
    assert page.evaluate("document.activeElement.className") == "raft-plot", "the focus stayed where it was"
    expect(page.locator("details")).to_have_attribute("open", "")
    expect(page.locator("#raft-lost")).to_be_hidden()

    os.kill(pids[own], signal.SIGKILL)
    visitor.sees("#raft-lost", "This node does not answer.")
    visitor.sees("#raft-age", "s old")
    assert page.evaluate("window.loadedOnce")
    assert visitor.faults == []


def check_what_is_there(visitor: Visitor, leader: str) -> None:
    page = visitor.page
    visitor.sees(".raft-summary", f"{leader} leads, 3 of 3 members are in reach.")
    visitor.sees(".raft-facts", re.compile(r"Writes\s*\d+(\.\d)? /s"))
    expect(page.locator(".raft-members tbody tr")).to_have_count(3)
    expect(page.locator(".raft-members tbody")).to_contain_text(re.compile(r"\d ms"), timeout=PATIENCE)
    # Curves are drawn, and go on.
    curve = page.locator("#raft-chart-writes path.raft-curve-0")
    expect(curve).to_have_attribute("d", re.compile("L"), timeout=PATIENCE)
    before = curve.get_attribute("d")
    expect(curve).not_to_have_attribute("d", before or "", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def check_the_keyboard(visitor: Visitor) -> None:
    """Everything can be reached and told without a mouse and without seeing it."""
    page = visitor.page
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText || ''"))
    text = "\n".join(names)
    for wanted in ("Writes per second over the last", "Commit latency over the last", "Verify", "This node"):
        assert wanted in text, text
    plot = page.locator("#raft-chart-writes .raft-plot")
    plot.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#raft-chart-writes .raft-cursor")).to_be_visible()
    assert re.search(r"/s .*ago", page.locator("#raft-chart-writes .raft-now").inner_text())
    assert re.search(r"/s .*ago", page.locator("[aria-live=polite].visually-hidden").first.text_content() or "")
    page.keyboard.press("Escape")
    expect(page.locator("#raft-chart-writes .raft-cursor")).to_be_hidden()
    snapshot = page.locator("#content-main").aria_snapshot()
    roles = (
        "status",
        'table "Members"',
        "columnheader",
        "rowheader",
        'button "Verify',
        'button "Snapshot',
        'img "Writes per',
        "checkbox",
    )
    assert [role for role in roles if role not in snapshot] == [], snapshot


def verify(visitor: Visitor) -> None:
    """A button, the question, what the page shows then, and the admin's log."""
    page = visitor.page
    page.get_by_role("button", name="Verify").click()
    visitor.sees("#content-main", "All members compare their whole content")
    page.get_by_role("button", name="Verify").click()
    visitor.sees(".messagelist", "The members are comparing their content")
    visitor.sees(".raft-facts", "all equal")
    page.goto(page.url.partition(PATH)[0] + "/admin/")
    visitor.sees("#recent-actions-module", "Raft group default")
    page.go_back()
    expect(page.locator("#raft-live")).to_be_visible()


def hand_over(visitor: Visitor, address: str) -> None:
    """A button of a member."""
    visitor.page.get_by_role("button", name=f"Make leader: {address}").click()
    visitor.sees("#content-main", address)
    visitor.page.get_by_role("button", name="Make leader").click()
    visitor.sees(".raft-summary", f"{address} leads, 3 of 3 members are in reach.")


def check_it_can_be_read(visitor: Visitor, width: int) -> None:
    page = visitor.page
    visitor.sees(".raft-summary", "3 of 3 members are in reach")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing to scroll sideways"
    ratios = page.evaluate(CONTRAST, TEXTS)
    assert ratios.keys() == set(TEXTS)
    assert min(ratios.values()) >= 4.5, (width, ratios)
    box = page.get_by_role("button", name="Verify").bounding_box()
    assert box is not None
    assert box["height"] >= 40, "large enough for a finger"
    assert visitor.faults == []


@pytest.fixture
def archiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the group that is started then."""
    archive = {"storage": "backups", "interval": 2}
    monkeypatch.setenv("RAFTSQLITE_DEFAULT", json.dumps({"OPTIONS": {"archive": archive}}))


def act(visitor: Visitor, button: str, answer: str | re.Pattern[str], fact: str | re.Pattern[str]) -> None:
    """A button of the group, the question, its answer, and what one of the boxes shows then."""
    for _ in ("the button", "the question"):
        visitor.page.get_by_role("button", name=button).click()
    visitor.sees(".messagelist", answer)
    visitor.sees(".raft-facts", fact)


@pytest.mark.skipif(not PICTURES, reason="RAFTSQLITE_SCREENSHOTS=1 makes the pictures in docs/images")
def test_pictures_of_the_page(archiving: None, cluster: Cluster, visit: Callable[..., Visitor]) -> None:
    desktop = visit(1, viewport={"width": 1280, "height": 900}, color_scheme="light")
    dark = visit(1, viewport={"width": 1280, "height": 900}, color_scheme="dark")
    phone = visit(
        1, viewport={"width": 390, "height": 844}, color_scheme="light", is_mobile=True, device_scale_factor=2
    )
    verify(desktop)
    time.sleep(HISTORY)
    act(desktop, "Snapshot", "the database is on the disk", re.compile(r"Last snapshot\s*[\d.]+ m?s ago"))
    act(desktop, "Back up", "A backup is being taken", re.compile(r"Last backup\s*[\d.]+ m?s ago"))
    desktop.page.reload()  # without the message
    for visitor in (desktop, dark, phone):
        visitor.sees(".raft-summary", "All is well")
    IMAGES.mkdir(exist_ok=True)
    for name, visitor in (("admin-desktop", desktop), ("admin-dark", dark), ("admin-phone", phone)):
        visitor.page.screenshot(path=IMAGES / f"{name}.png", full_page=True)
    pids = cluster.ready()
    victim = next(node for node in pids if node != 1)
    os.kill(pids[victim], signal.SIGKILL)
    desktop.sees(".raft-warnings", "Not in reach")
    until(lambda: cluster.get(1, "/node.json"), lambda: "node 1 answers")
    desktop.page.screenshot(path=IMAGES / "admin-member-away.png", full_page=True)
