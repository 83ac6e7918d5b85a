"""A headless Chromium for tests of pages, and what every page must keep to."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

LAPTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@contextmanager
def chromium():
    """Yield a browser; skip where there is none.

    Playwright runs an event loop in this thread until the context ends, so it must not outlive a
    module whose tests run loops of their own.
    """
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: .[dev]")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Seen:
    """A page that is open, and what it asked for and complained of."""

    page: Any
    requests: list = field(default_factory=list)
    errors: list = field(default_factory=list)


@contextmanager
def opened(browser, url, *, size=LAPTOP, scheme="light", allow=()):
    """Yield a page; it asked no other host for anything, and wrote no error.

    Args:
        browser: of `chromium`.
        url: to open.
        size: of the window.
        scheme: light or dark.
        allow: parts of messages that are no errors of the page: a status that a test provokes.
    """
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine is no fault
    seen = Seen(page)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("console", lambda message: _note(seen, message))
    page.on("dialog", lambda dialog: seen.errors.append(f"dialog: {dialog.message}"))
    page.goto(url)
    yield seen
    host = url.split("/")[2]  # empty where it is a file
    foreign = [one for one in seen.requests if not _own(one, host)]
    context.close()
    assert foreign == []
    assert [one for one in seen.errors if not any(part in one for part in allow)] == []


def _note(seen, message):
    if message.type in ("error", "warning"):
        seen.errors.append(message.text)


def _own(url, host):
    return url.startswith(("data:", "file:")) or url.split("/")[2] == host


NAMED = {
    *("textbox", "searchbox", "combobox", "spinbutton", "checkbox", "button", "link"),
    *("tab", "tabpanel", "region", "img", "image"),
}
"""Roles that mean nothing without a name."""

AUDIT = Path(__file__).with_name("audit.js").read_text()


def audit(page):
    """Return what is wrong with a page for those who read it by ear, by keyboard or on a phone."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    found = page.evaluate(AUDIT)
    for node in tree:
        role = node.get("role", {}).get("value")
        name = str(node.get("name", {}).get("value", "")).strip()
        facts = {one["name"]: one["value"].get("value") for one in node.get("properties", ())}
        reached = facts.get("focusable") and role not in ("RootWebArea", "main")
        if not node.get("ignored") and (role in NAMED or reached) and not name:
            found.append(f"a {role} has no name")
    return found
