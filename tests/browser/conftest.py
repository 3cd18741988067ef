"""Fixtures of the browser tests: one shop per session, one browser per module, one page per test."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import missing
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, expect, sync_playwright
from support.chromium import find_chromium
from support.service import Service

from browser.shop import Shop

# They fire at an event that no other test posts.
RULES = """
[[rules]]
name = "voucher"
events = ["view_promotion"]
control = 0.5

[[rules]]
name = "chat"
events = ["view_promotion"]
min_events = 2
"""
# The browser logs this text for an error status or a failed connection.
_NETWORK_FAILURE = "Failed to load resource"


@pytest.fixture(scope="session")
def running_shop(artifact, start_redis, tmp_path_factory) -> Iterator[Shop]:
    redis = start_redis("valkey-8.1")
    log = tmp_path_factory.mktemp("dashboard") / "service.log"
    rules = log.with_name("rules.toml")
    rules.write_text(RULES)
    settings = {"artifact": artifact, "redis_url": redis.url, "interventions_file": rules}
    service = Service(log, settings)
    try:
        service.start()
        shop = Shop(service, redis)
        yield shop
        shop.close()
    finally:
        service.stop()


@pytest.fixture
def shop(running_shop: Shop) -> Shop:
    """The shop without sessions."""
    running_shop.redis.flush()
    return running_shop


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    # Per module: with a session scope, Playwright's event loop would still run during other tests.
    path = find_chromium()
    if path is None:
        raise missing("chromium")
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """The pages of a test; collects console errors and requests to other hosts in `complaints`."""

    def __init__(self, browser: Browser, shop: Shop) -> None:
        self._browser = browser
        self._shop = shop
        self.complaints: list[str] = []
        self.may_fail = False

    def __call__(self, address: str = "", **options: Any) -> Page:
        """Open the dashboard in a new browser context, without storage or cookies."""
        page = self._browser.new_context(**options).new_page()
        page.set_default_timeout(30_000)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", self._on_request)
        page.on("dialog", self._on_dialog)
        page.goto(address or self._shop.url)
        return page

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not (self.may_fail and message.text.startswith(_NETWORK_FAILURE)):
            self.complaints.append(f"{message.type}: {message.text}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith(self._shop.service.base_url + "/"):
            self.complaints.append(f"request to another host: {request.url}")

    def close(self) -> None:
        for context in self._browser.contexts:
            for page in context.pages:
                page.unroute_all(behavior="ignoreErrors")
            context.close()


@pytest.fixture
def opened(chromium: Browser, shop: Shop) -> Iterator[Opened]:
    """Open pages. After the test, a console error or a request to another host fails the test.

    Set `may_fail` if the service is down for a while or returns an error intentionally.
    """
    opened = Opened(chromium, shop)
    yield opened
    opened.close()
    assert opened.complaints == []


@pytest.fixture
def page(opened: Callable[..., Page]) -> Page:
    return opened()
