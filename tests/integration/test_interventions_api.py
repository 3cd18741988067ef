"""Two replicas with rules on one Redis: from events to counted outcomes, switches, webhooks and the collected table."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from support.fakes import FakeModel
from support.tls import make_certificate
from support.webhook_receiver import receiver
from support.webhook_secrets import new_secret

from app.interventions import sender as sending
from app.interventions.sender import WebhookSender
from app.main import create_app
from app.settings import Settings
from app.store import experiments as counting
from training.collect.connection import open_client
from training.collect.entries import EntryId, ended_session
from training.collect.streams import Streams

pytestmark = pytest.mark.anyio

RULES = """
[[rules]]
name = "voucher"
events = ["view_cart"]
control = 0.5

[[rules]]
name = "chat"
min_events = 2
"""


@asynccontextmanager
async def replicas(server, path, count=2):
    """Clients of so many services, the first of which is the one that is asked."""
    settings = Settings(
        artifact="unused.pt",
        open_access=True,
        redis_url=server.url,
        session_idle_s=10,
        interventions_file=path,
    )
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(count):
            app = create_app(settings, model=FakeModel())
            await stack.enter_async_context(app.router.lifespan_context(app))
            transport = httpx.ASGITransport(app)
            clients.append(
                await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://willbuy"))
            )
        yield clients


async def post(client, session_id, event_name, **fields):
    response = await client.post("/v1/events", json={"session_id": session_id, "event_name": event_name} | fields)
    assert response.status_code == 200, response.text
    return response.json()


async def until(read, holds):
    """Return what `read` gives as soon as it holds."""
    while not holds(found := await read()):  # noqa: ASYNC110 - the state is in Redis
        await asyncio.sleep(0.05)
    return found


def rule_named(name):
    async def read(client):
        response = await client.get("/v1/interventions")
        assert response.status_code == 200, response.text
        return next(rule for rule in response.json()["rules"] if rule["name"] == name)

    return read


async def test_outcomes_are_counted_once_by_rule_and_group_and_stand_in_the_collected_table(
    valkey, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(counting, "PENDING_IDLE_TIMES", 0.0)
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    async with replicas(valkey, path) as clients:
        groups: dict[str, str] = {}
        for number in range(24):
            session_id, client = f"s-{number}", clients[number % 2]
            await post(client, session_id, "view_item", currency="EUR")
            found = (await post(client, session_id, "view_cart"))["interventions"]
            groups[session_id] = "treatment" if any(one["name"] == "voucher" for one in found) else "control"
            if number % 3 == 0:
                await post(
                    client,
                    session_id,
                    "purchase",
                    **({"value": 12.5, "currency": "eur"} if number % 2 else {"price": 5, "quantity": 2}),
                )
            else:
                outcome = await client.post(f"/v1/sessions/{session_id}/outcome", json={"outcome": "none"})
                assert outcome.status_code == 200, outcome.text
        # When both have published all
        read = rule_named("voucher")
        voucher = await until(
            lambda: read(clients[0]),
            lambda rule: rule["treatment"]["sessions"] + rule["control_group"]["sessions"] == 24,
        )
        # Then
        for group, name in (("treatment", "treatment"), ("control", "control_group")):
            mine = [int(session_id[2:]) for session_id, own in groups.items() if own == group]
            bought = [number for number in mine if number % 3 == 0]
            shown = voucher[name]
            assert (shown["sessions"], shown["buyers"], shown["fired_today"]) == (len(mine), len(bought), len(mine))
            assert shown["currency"] == "EUR"
            assert shown["revenue"] == pytest.approx(sum(12.5 if number % 2 else 10.0 for number in bought))
        assert voucher["experiment"]["finding"] == "too_few"
        assert voucher["rule"] == {"events": ["view_cart"], "control": 0.5}
        chat = await rule_named("chat")(clients[1])
        assert (chat["treatment"]["sessions"], chat["experiment"]["finding"]) == (24, "no_control")
    # And the stream has the decisions, from which the collector makes columns
    redis = open_client(valkey.url)
    try:
        entries = list(Streams(redis, group="g", consumer="c").new(100))
    finally:
        redis.close()
    published = [json.loads(entry.session or b"") for entry in entries]
    sessions = {session["session_id"]: session for session in published}
    assert len(sessions) == 24
    for session_id, session in sessions.items():
        assert {one["rule"]: one["group"] for one in session["interventions"]} == {
            "voucher": groups[session_id],
            "chat": "treatment",
        }
    ended = ended_session(EntryId(0, "1-0"), json.dumps(sessions["s-3"]).encode())
    assert ended is not None
    assert ended.rows[0]["property.willbuy.interventions"] == f"chat=treatment voucher={groups['s-3']}"
    assert (ended.rows[-1]["value"], ended.rows[-1]["currency"]) == (12.5, "EUR")
    # The purchase without a currency has that of the session's events.
    assert (sessions["s-0"]["value"], sessions["s-0"]["currency"]) == (10.0, "EUR")


async def test_a_switched_off_rule_fires_in_no_replica_until_it_is_on_again(valkey, tmp_path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[rules]]\nname = "always"\nrepeat = true\n')
    async with replicas(valkey, path) as (one, other):

        async def fired():
            return [bool((await post(client, "s", "page_view"))["interventions"]) for client in (one, other)]

        assert await fired() == [True, True]
        switched = await one.post("/v1/interventions/always/switch", json={"on": False})
        assert switched.json() == {"name": "always", "on": False}
        # At once where it was asked for, and soon in the other
        assert not (await post(one, "s", "page_view"))["interventions"]
        await until(fired, lambda found: found == [False, False])
        rule = await until(lambda: rule_named("always")(other), lambda rule: not rule["on"])
        assert rule["switched_off"] is not None
        # A replica that starts later knows of it at its first event
        async with replicas(valkey, path, count=1) as (late,):
            assert not (await post(late, "s", "page_view"))["interventions"]
        await other.post("/v1/interventions/always/switch", json={"on": True})
        await until(fired, lambda found: found == [True, True])


async def test_a_decision_is_sent_to_the_webhook_of_the_file_and_erased_with_its_session(
    valkey, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(sending, "EVERY_S", 0.01)
    assert WebhookSender.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(WebhookSender.__init__.__kwdefaults__, "first_wait_s", 1_000.0)
    secret = new_secret()
    monkeypatch.setenv("HOOK_SECRET", secret)
    certificate = make_certificate(tmp_path)
    is_up = False
    async with receiver(certificate, secret, lambda _: (204 if is_up else 500, {})) as shop:
        path = tmp_path / "rules.toml"
        path.write_text(
            RULES + f'[[webhooks]]\nurl = "{shop.url}"\nsecret_env = "HOOK_SECRET"\nrules = ["chat"]\n'
            'allow_private = true\nca_file = "server.crt"\n'
        )
        async with replicas(valkey, path) as (one, other):
            await post(one, "s-1", "page_view")
            answer = await post(other, "s-1", "page_view")
            await shop.until(1)
            (data,) = (body["data"] for _, body in shop.received)
            assert (data["rule"], data["session_id"], data["event"]) == ("chat", "s-1", 2)
            assert data["probability"] == pytest.approx(answer["probability"], abs=1e-6)

            async def webhook():
                (found,) = (await one.get("/v1/interventions")).json()["webhooks"]
                return found

            found = await until(webhook, lambda found: found["waiting"] == 1)
            assert (found["rules"], found["dead"]) == (["chat"], 0)
            dead = (await one.get(f"/v1/webhooks/{found['name']}/dead")).json()
            assert (dead["dead"], dead["messages"]) == (0, [])
            resent = await one.post(f"/v1/webhooks/{found['name']}/resend", json={})
            assert resent.json() == {"webhook": found["name"], "resent": 0}
            assert (await one.delete("/v1/sessions/s-1")).status_code == 204
            assert (await webhook())["waiting"] == 0


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("POST", "/v1/interventions/vouchr/switch", {"on": False}, 404, "rule_not_found"),
        ("POST", "/v1/interventions/voucher/switch", {"on": "no"}, 422, "invalid_request"),
        ("POST", "/v1/interventions/voucher/switch", {}, 422, "invalid_request"),
        ("POST", "/v1/interventions/voucher/switch", {"on": True, "by": "me"}, 422, "invalid_request"),
        ("POST", "/v1/interventions/voucher/switch", None, 415, "unsupported_media_type"),
        ("GET", "/v1/webhooks/none/dead", None, 404, "webhook_not_found"),
        ("POST", "/v1/webhooks/none/resend", {}, 404, "webhook_not_found"),
    ],
)
async def test_bad_requests_are_named(valkey, tmp_path, method, target, body, status, code) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    async with replicas(valkey, path, count=1) as (client,):
        if body is None:
            response = await client.request(method, target, content=b"on")
        else:
            response = await client.request(method, target, json=body)
        assert (response.status_code, response.json()["code"]) == (status, code), response.text


async def test_without_a_file_there_are_no_rules_and_nothing_is_read(valkey) -> None:
    async with replicas(valkey, None, count=1) as (client,):
        answer = (await client.get("/v1/interventions")).json()
        assert (answer["rules"], answer["webhooks"]) == ([], [])
