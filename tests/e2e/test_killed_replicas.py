"""Rules in real processes that are killed: every decision arrives, under one id, and every session counts once."""

import asyncio

import httpx
import pytest
from support.tls import make_certificate
from support.webhook_receiver import receiver
from support.webhook_secrets import new_secret

pytestmark = pytest.mark.anyio

SESSIONS = 30
# Leases and waits of tenths of a second, so that a test sees their end.
QUICK = {
    "app.store.webhooks:RedisWebhooks": {"lease_ms": 400},
    "app.interventions.sender:WebhookSender": {"first_wait_s": 0.05},
}


async def rule_of(client, replica):
    answer = await client.get(f"{replica.base_url}/v1/interventions")
    assert answer.status_code == 200, answer.text
    return answer.json()["rules"][0]


# Two services start five times, and messages wait for leases and retries of dead replicas.
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_no_decision_is_lost_and_no_session_counts_twice_when_replicas_are_killed(
    service, valkey, tmp_path
) -> None:
    secret, certificate = new_secret(), make_certificate(tmp_path)
    (tmp_path / "secret").write_text(secret)
    # Every third request fails, so that a killed replica leaves messages of all kinds.
    async with receiver(certificate, secret, lambda number: (500 if number % 3 == 1 else 204, {})) as shop:
        rules = tmp_path / "rules.toml"
        rules.write_text(
            '[[rules]]\nname = "always"\n'
            f'[[webhooks]]\nurl = "{shop.url}"\nsecret_file = "secret"\nallow_private = true\nca_file = "server.crt"\n'
        )
        settings = {"redis_url": valkey.url, "interventions_file": rules, "session_idle_s": 4, "tuned": QUICK}
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
                ended = await client.post(
                    f"{replicas[number % 2].base_url}/v1/sessions/s-{number}/outcome",
                    json={"outcome": "purchase", "value": 2.0} if number % 3 == 0 else {"outcome": "none"},
                )
                assert ended.status_code == 200, ended.text
                if number % 10 == 9:
                    # When a replica is killed in the midst of it, and starts again
                    await shop.until(number // 2)
                    killed.kill()
                    killed.start()
            # Then every session counts once, from one and a half idle times on
            while (rule := await rule_of(client, replicas[0]))["treatment"]["sessions"] < SESSIONS:  # noqa: ASYNC110 - the state is in Redis
                await asyncio.sleep(0.1)
            counts = {name: rule["treatment"][name] for name in ("sessions", "pending", "buyers", "revenue")}
            assert counts == {
                "sessions": SESSIONS,
                "pending": 0,
                "buyers": SESSIONS // 3,
                "revenue": 2.0 * SESSIONS / 3,
            }
        # And every decision arrives, each under one id
        while {body["data"]["session_id"] for _, body in shop.accepted} < decided:
            await shop.until(len(shop.received) + 1)
    ids: dict[str, set[str]] = {}
    for message_id, body in shop.received:
        ids.setdefault(body["data"]["session_id"], set()).add(message_id)
    assert set(ids) == decided
    assert all(len(one) == 1 for one in ids.values())
