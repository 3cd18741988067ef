"""Webhooks of real processes that are killed: every decision arrives, and a repeated one has its id again."""

import httpx
import pytest
from conftest import PATIENT
from support.tls import make_certificate
from support.webhook_receiver import receiver

from app.interventions.webhooks import new_secret

pytestmark = pytest.mark.anyio

SESSIONS = 30
# Leases and waits of tenths of a second, so that a test sees their end.
QUICK = {
    "app.store.webhooks:RedisWebhooks": {"lease_ms": 400},
    "app.interventions.sender:WebhookSender": {"first_wait_s": 0.05},
}


async def test_no_decision_is_lost_when_replicas_are_killed(service, valkey, tmp_path) -> None:
    secret, certificate = new_secret(), make_certificate(tmp_path)
    (tmp_path / "secret").write_text(secret)
    # Every second request fails, so that a killed replica leaves messages of all kinds.
    async with receiver(certificate, secret, lambda number: (500 if number % 2 else 204, {})) as shop:
        rules = tmp_path / "rules.toml"
        rules.write_text(
            '[[rules]]\nname = "always"\n'
            f'[[webhooks]]\nurl = "{shop.url}"\nsecret_file = "secret"\nallow_private = true\nca_file = "server.crt"\n'
        )
        settings = {"redis_url": valkey.url, "interventions_file": rules, "tuned": QUICK} | PATIENT
        replicas = [service(**settings) for _ in range(2)]
        decided: set[str] = set()
        async with httpx.AsyncClient(timeout=30) as client:
            for number in range(SESSIONS):
                killed = replicas[number // 10 % 2]
                answer = await client.post(
                    f"{replicas[number % 2].base_url}/v1/events",
                    json={"session_id": f"s-{number}", "event_name": "page_view"},
                )
                assert answer.json()["interventions"], answer.text
                decided.add(f"s-{number}")
                if number % 10 == 9:
                    # When a replica is killed in the midst of it, and starts again
                    await shop.until(number // 2)
                    killed.kill()
                    killed.start()
        # Then every decision arrives, each under one id
        while {body["data"]["session_id"] for _, body in shop.accepted} < decided:
            await shop.until(len(shop.received) + 1)
    ids: dict[str, set[str]] = {}
    for message_id, body in shop.received:
        ids.setdefault(body["data"]["session_id"], set()).add(message_id)
    assert set(ids) == decided
    assert all(len(one) == 1 for one in ids.values())
