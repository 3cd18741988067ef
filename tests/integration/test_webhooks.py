"""Webhooks end to end below the rules: decisions in a real Redis, queues, senders, a real HTTPS receiver."""

import asyncio
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import httpx
import msgspec
import pytest
from support.tls import make_certificate
from support.webhook_receiver import receiver
from support.webhook_secrets import new_secret

from app.interventions import sender as sending
from app.interventions import webhooks as attempts
from app.interventions.sender import WebhookSender
from app.interventions.webhooks import AttemptError, Receiver, Webhook
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.store import webhooks as queues
from app.store.interventions import HandedOver, RedisDecisions
from app.store.keys import Keys, shard_of
from app.store.redis.connection import Command, ConnectionOptions, open_client
from app.store.redis.scripts import ScriptRunner
from app.store.webhooks import Claimed, RedisWebhooks

pytestmark = pytest.mark.anyio

NOW_MS = 1_790_000_000_000
SECRET = new_secret()
KEYS = Keys()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def opened(server):
    client = open_client(server.url, ConnectionOptions(timeout_s=10))
    try:
        yield client
    finally:
        await client.close()


def hook(shop, certificate, **fields):
    return Webhook(httpx.URL(shop.url), (SECRET,), allow_private=True, ca_file=certificate[0], **fields)


async def decide(client, session_id, *, rule="voucher", group="treatment", decided_ms=NOW_MS):
    """Append a decision as a commit does."""
    decision = msgspec.json.encode(HandedOver(session_id, rule, group, 0.4, 3, decided_ms))
    shard = shard_of(session_id)
    (reply,) = await client.execute(
        [Command(shard, ("XADD", KEYS.decisions(shard), "*", "id", session_id, "decision", decision))]
    )
    assert isinstance(reply, bytes)


@asynccontextmanager
async def replica(client, *webhooks, metrics=None):
    scripts = ScriptRunner(client)
    sender = WebhookSender(
        RedisWebhooks(scripts, KEYS),
        RedisDecisions(scripts, keys=KEYS),
        metrics=metrics or Metrics(),
        logger=build_logger(log_level="error"),
        now_ms=lambda: NOW_MS,
        first_wait_s=0.001,
    )
    sender.use(webhooks)
    sender.start()
    try:
        yield sender
    finally:
        await sender.close()


async def settled(store, webhook, **expected):
    """Wait until the queue has these sizes."""
    while True:
        state = await store.state(webhook.name, most_dead=100)
        if all(getattr(state, name) == value for name, value in expected.items()):
            return state
        await asyncio.sleep(0.01)


async def moved(client):
    """Wait until it is stored which decisions are in the queues."""
    while True:
        if await client.execute([Command(0, ("EXISTS", KEYS.moved_decisions()[1]))]) == [1]:
            return
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Loops of milliseconds."""
    monkeypatch.setattr(sending, "EVERY_S", 0.01)


async def test_each_decision_is_sent_once_signed_to_those_who_want_it(redis_server, certificate) -> None:
    async with (
        opened(redis_server) as client,
        receiver(certificate, SECRET) as shop,
        receiver(certificate, SECRET) as all_of,
    ):
        webhooks = hook(shop, certificate, rules=frozenset({"voucher"})), hook(all_of, certificate, control=True)
        for number in range(20):
            await decide(client, f"s-{number}", rule="voucher" if number % 2 else "chat")
        await decide(client, "held", group="control")
        await decide(client, "yesterday", decided_ms=NOW_MS - 86_400_000)
        async with replica(client, *webhooks), replica(client, *webhooks):
            await asyncio.gather(shop.until(10), all_of.until(21))
            store = RedisWebhooks(ScriptRunner(client), KEYS)
            for webhook in webhooks:
                await settled(store, webhook, waiting=0)
        assert sorted(body["data"]["session_id"] for _, body in shop.received) == sorted(
            f"s-{number}" for number in range(1, 20, 2)
        )
        assert len(set(all_of.ids)) == len(all_of.ids) == 21
        assert {body["data"]["session_id"] for _, body in all_of.received} == {"held", *(f"s-{n}" for n in range(20))}


async def test_a_failed_attempt_is_repeated_with_the_same_id(valkey, certificate) -> None:
    statuses = [500, 302, 429]
    async with (
        opened(valkey) as client,
        receiver(
            certificate,
            SECRET,
            lambda number: (statuses[number] if number < 3 else 200, {"location": "https://127.0.0.1:1/"}),
        ) as shop,
    ):
        webhook, metrics = hook(shop, certificate), Metrics()
        await decide(client, "s-1")
        async with replica(client, webhook, metrics=metrics):
            await shop.until(4)
            await settled(RedisWebhooks(ScriptRunner(client), KEYS), webhook, waiting=0, dead=0)
        assert len(set(shop.ids)) == 1
        for result in ("status_500", "redirect", "status_429", "sent"):
            labels = {"webhook": webhook.name, "result": result}
            assert metrics.registry.get_sample_value("willbuy_webhook_attempts_total", labels) == 1


async def test_after_the_last_attempt_a_message_is_dead_and_can_be_sent_again(valkey, certificate, monkeypatch) -> None:
    monkeypatch.setattr(sending, "MOST_ATTEMPTS", 2)
    works = asyncio.Event()
    async with (
        opened(valkey) as client,
        receiver(certificate, SECRET, lambda _: (200 if works.is_set() else 503, {})) as shop,
    ):
        webhook, metrics = hook(shop, certificate), Metrics()
        store = RedisWebhooks(ScriptRunner(client), KEYS)
        await decide(client, "s-1")
        async with replica(client, webhook, metrics=metrics):
            state = await settled(store, webhook, waiting=0, dead=1)
            (dead,) = state.messages
            assert (dead.message_id, dead.attempts, dead.cause) == (shop.ids[0], 2, "status_503")
            assert '"session_id":"s-1"' in dead.body
            labels = {"webhook": webhook.name, "cause": "status_503"}
            assert metrics.registry.get_sample_value("willbuy_webhook_dead_total", labels) == 1
            works.set()
            assert await store.resend(webhook.name, [dead.message_id, "msg_unknown"]) == 1
            await settled(store, webhook, waiting=0, dead=0)
        assert shop.ids == [dead.message_id] * 3


async def test_a_receiver_that_is_gone_gets_no_other_attempt(valkey, certificate) -> None:
    async with opened(valkey) as client, receiver(certificate, SECRET, lambda _: (410, {})) as shop:
        webhook = hook(shop, certificate)
        await decide(client, "s-1")
        async with replica(client, webhook):
            state = await settled(RedisWebhooks(ScriptRunner(client), KEYS), webhook, waiting=0, dead=1)
        assert state.messages[0].cause == "status_410"
        assert len(shop.received) == 1


async def test_a_replica_that_dies_after_taking_a_message_loses_none(valkey, certificate) -> None:
    """The lease ends, and another replica sends it."""
    async with opened(valkey) as client, receiver(certificate, SECRET) as shop:
        webhook, store = hook(shop, certificate), RedisWebhooks(ScriptRunner(client), KEYS, lease_ms=1)
        await store.add(webhook.name, {"msg_1": "{}"})
        (claimed,) = await store.claim(webhook.name, 8)
        assert claimed == Claimed("msg_1", "{}", 1)
        async with replica(client, webhook):
            await shop.until(1)
            await settled(store, webhook, waiting=0, dead=0)
        assert set(shop.ids) == {"msg_1"}


async def test_decisions_whose_place_was_not_recorded_are_sent_again_with_the_same_id(valkey, certificate) -> None:
    async with opened(valkey) as client, receiver(certificate, SECRET) as shop:
        webhook, store = hook(shop, certificate), RedisWebhooks(ScriptRunner(client), KEYS)
        await decide(client, "s-1")
        async with replica(client, webhook):
            await shop.until(1)
            # Else it is sent again only when its lease has ended.
            await settled(store, webhook, waiting=0)
        await client.execute([Command(0, ("DEL", *KEYS.moved_decisions()))])
        async with replica(client, webhook):
            await shop.until(2)
        assert len(set(shop.ids)) == 1


async def test_decisions_of_a_long_outage_are_sent(valkey, certificate) -> None:
    async with opened(valkey) as client, receiver(certificate, SECRET) as shop:
        webhook = hook(shop, certificate)
        await decide(client, "s-1")
        async with replica(client, webhook):
            await shop.until(1)
            await moved(client)
        await client.execute([Command(0, ("DEL", KEYS.moved_decisions()[0]))])
        # The place is known, so age does not matter
        await decide(client, "s-1", decided_ms=NOW_MS - 3_600_000)
        async with replica(client, webhook):
            await shop.until(2)


async def test_a_replica_goes_on_where_the_last_one_ended(valkey, certificate) -> None:
    async with opened(valkey) as client, receiver(certificate, SECRET) as shop:
        webhook, store = hook(shop, certificate), RedisWebhooks(ScriptRunner(client), KEYS)
        await decide(client, "s-1")
        async with replica(client, webhook):
            await shop.until(1)
            await settled(store, webhook, waiting=0)
        await decide(client, "s-1")
        await client.execute([Command(0, ("DEL", KEYS.moved_decisions()[0]))])
        async with replica(client, webhook):
            await shop.until(2)
        assert len(set(shop.ids)) == 2


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("hangs", "timeout"),
        ("refuses", "connect"),
        ("untrusted", "tls"),
        ("another name", "tls"),
        ("private", "private_address"),
        ("no name", "name_not_found"),
    ],
)
async def test_a_failure_has_its_cause(case, cause, certificate, monkeypatch) -> None:
    monkeypatch.setattr(attempts, "ATTEMPT_S", 0.3 if case == "hangs" else 10.0)
    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(receiver(certificate, SECRET, lambda _: None))
        webhook = hook(shop, certificate)
        if case == "refuses":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            listener.close()
            webhook = replace(webhook, url=webhook.url.copy_with(port=port))
        elif case == "untrusted":
            webhook = replace(webhook, ca_file=None)
        elif case == "another name":
            # The certificate is of 127.0.0.1, to which the name resolves.
            webhook = replace(webhook, url=webhook.url.copy_with(host="localhost"))
        elif case == "private":
            webhook = replace(webhook, allow_private=False)
        elif case == "no name":
            webhook = replace(webhook, url=webhook.url.copy_with(host="nothing.invalid"))
        client = Receiver(webhook)
        stack.push_async_callback(client.close)
        with pytest.raises(AttemptError) as caught:
            await client.post("msg_1", "{}")
        assert caught.value.cause == cause
        assert len(shop.received) == (1 if case == "hangs" else 0)


async def test_the_receiver_may_ask_to_wait(certificate) -> None:
    async with receiver(certificate, SECRET, lambda _: (503, {"retry-after": "120"})) as shop:
        client = Receiver(hook(shop, certificate))
        with pytest.raises(AttemptError) as caught:
            await client.post("msg_1", "{}")
        assert caught.value.retry_after_s == 120.0
        await client.close()


async def test_another_file_brings_other_webhooks(valkey, certificate) -> None:
    async with (
        opened(valkey) as client,
        receiver(certificate, SECRET) as first,
        receiver(certificate, SECRET) as second,
    ):
        async with replica(client, hook(first, certificate)) as sender:
            await decide(client, "s-1")
            await first.until(1)
            sender.use([hook(second, certificate)])
            assert [str(webhook.url) for webhook in sender.webhooks] == [second.url]
            await decide(client, "s-2")
            await second.until(1)
        assert len(first.received) == 1


async def test_a_message_is_there_once_and_all_is_bounded(redis_server, monkeypatch) -> None:
    monkeypatch.setattr(queues, "MOST_WAITING", 3)
    monkeypatch.setattr(queues, "MOST_DEAD", 2)
    async with opened(redis_server) as client:
        store = RedisWebhooks(ScriptRunner(client), KEYS)
        assert await store.add("a", {"1": "x", "2": "x"}) == (2, 0, 0)
        assert await store.add("a", {"1": "y", "3": "x", "4": "x", "5": "x", "6": "x"}) == (1, 3, 1)
        state = await store.state("a", most_dead=10)
        assert (state.waiting, state.dead) == (3, 2)
        # The oldest went, with all that belonged to it, so that it is new when it comes again
        assert {message.message_id: message.cause for message in state.messages} == dict.fromkeys("56", "queue_full")
        assert await store.add("a", {"4": "x"}) == (0, 1, 1)
        assert [one.body for one in await store.claim("a", 10)] == ["x"] * 3
        assert await store.claim("a", 10) == []
        assert await store.resend("a") == 2
        assert (await store.state("a")).dead == 0
        assert await store.add("b", {"1": "x"}) == (1, 0, 0)


async def test_a_late_result_of_a_lost_lease_changes_nothing_but_a_delivery(redis_server) -> None:
    async with opened(redis_server) as client:
        store = RedisWebhooks(ScriptRunner(client), KEYS, lease_ms=0)
        await store.add("a", {"1": "x"})
        (early,) = await store.claim("a", 1)
        (late,) = await store.claim("a", 1)
        assert (early.attempt, late.attempt) == (1, 2)
        await store.die("a", early, "timeout")
        assert (await store.state("a")).dead == 0
        await store.again("a", early, wait_s=1000)
        assert len(await store.claim("a", 1)) == 1
        await store.sent("a", early)
        state = await store.state("a")
        assert (state.waiting, state.dead) == (0, 0)


async def test_a_message_that_is_sent_again_has_all_its_attempts_ahead(redis_server, monkeypatch) -> None:
    monkeypatch.setattr(queues, "_RESENT_AT_ONCE", 2)  # private: in how many calls is no matter of callers
    async with opened(redis_server) as client:
        store = RedisWebhooks(ScriptRunner(client), KEYS, lease_ms=0)
        await store.add("a", dict.fromkeys("12345", "x"))
        for number in (1, 2):
            claimed = await store.claim("a", 9)
            assert [one.attempt for one in claimed] == [number] * 5
        for one in claimed:
            await store.die("a", one, "timeout")
        assert await store.resend("a") == 5
        assert await store.resend("a") == 0
        assert [one.attempt for one in await store.claim("a", 9)] == [1] * 5


async def test_the_next_attempt_is_when_the_receiver_asked_for_it(valkey, certificate) -> None:
    async with (
        opened(valkey) as client,
        receiver(certificate, SECRET, lambda _: (503, {"retry-after": "120"})) as shop,
    ):
        webhook, store = hook(shop, certificate), RedisWebhooks(ScriptRunner(client), KEYS)
        began_ms = time.time_ns() // 1_000_000
        await decide(client, "s-1")
        async with replica(client, webhook):
            await shop.until(1)
            # Later than the lease ends
            while ((await store.state(webhook.name)).next_ms or 0) < began_ms + 100_000:
                assert len(shop.received) == 1
                await asyncio.sleep(0.01)


async def test_a_webhook_whose_rules_change_goes_on_with_the_new_ones(valkey, certificate) -> None:
    async with opened(valkey) as client, receiver(certificate, SECRET) as shop:
        webhook = hook(shop, certificate)
        async with replica(client, webhook) as sender:
            await decide(client, "s-1")
            await shop.until(1)
            sender.use([replace(webhook, rules=frozenset({"chat"}))])
            assert [one.rules for one in sender.webhooks] == [{"chat"}]
            # In one shard, so one after another
            await decide(client, "s-1", rule="voucher", decided_ms=NOW_MS + 1)
            await decide(client, "s-1", rule="chat")
            await shop.until(2)
        assert [body["data"]["rule"] for _, body in shop.received] == ["voucher", "chat"]


async def test_an_erased_session_has_no_messages(redis_server) -> None:
    async with opened(redis_server) as client:
        store = RedisWebhooks(ScriptRunner(client), KEYS)
        mine = queues.message_id("s-1", "a")
        await store.add("a", {mine: "x", queues.message_id("s-2", "a"): "x"})
        # Dead ones, too
        dead = queues.message_id("s-1", "b")
        await store.add("a", {dead: "x"})
        for one in await store.claim("a", 9):
            if one.message_id == dead:
                await store.die("a", one, "timeout")
            else:
                await store.again("a", one, wait_s=0)
        assert (await store.state("a")).dead == 1
        assert await store.forget("a", "s-1") == 2
        assert (await store.state("a")).dead == 0
        (left,) = await store.claim("a", 9)
        assert left.message_id == queues.message_id("s-2", "a")
