"""What a file may say of webhooks, which addresses are public, and the form of a message."""

import json
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError
from support.webhook_secrets import new_secret

from app.interventions.sender import FIRST_WAIT_S, MOST_ATTEMPTS, message_of, wait_s
from app.interventions.webhooks import (
    MOST_WEBHOOKS,
    AttemptError,
    PinnedTransport,
    Webhook,
    WebhookError,
    is_public,
    read_webhooks,
    signed_headers,
)
from app.store.interventions import DecisionEntry, HandedOver
from app.store.webhooks import message_prefix

SECRET = new_secret()
ENTRY = {"url": "https://shop.example/hooks?token=abc", "secret_env": "HOOK"}


def read(*tables, folder, environment=None):
    return read_webhooks(
        list(tables),
        {"voucher", "chat"},
        folder=folder,
        environment={"HOOK": SECRET} if environment is None else environment,
    )


def test_an_entry_has_an_address_a_secret_and_rules(tmp_path) -> None:
    (webhook,) = read(ENTRY | {"rules": ["voucher"], "control": True}, folder=tmp_path)
    assert str(webhook.url) == ENTRY["url"]
    assert webhook.secrets == (SECRET,)
    assert webhook.wants("voucher", "control")
    assert not webhook.wants("chat", "treatment")


def test_by_default_all_rules_are_sent_and_no_control_group(tmp_path) -> None:
    (webhook,) = read(ENTRY, folder=tmp_path)
    assert webhook.wants("chat", "treatment")
    assert not webhook.wants("chat", "control")
    assert not webhook.allow_private


def test_a_secret_may_be_in_a_file_beside_the_rules_and_there_may_be_two(tmp_path) -> None:
    newer = new_secret()
    (tmp_path / "secret").write_text(f"{newer}\n{SECRET}\n")
    (webhook,) = read({"url": "https://shop.example/", "secret_file": "secret"}, folder=tmp_path)
    assert webhook.secrets == (newer, SECRET)


def test_neither_path_nor_secret_is_in_a_name_or_a_representation(tmp_path) -> None:
    (webhook,) = read(ENTRY, folder=tmp_path)
    for text in (webhook.name, repr(webhook)):
        assert "token" not in text
        assert SECRET not in text
    assert webhook.name.startswith("shop.example-")


@pytest.mark.parametrize(
    ("entry", "field", "expected"),
    [
        ({"secret_env": "HOOK"}, "url", "missing"),
        ({"url": "https://a.example/"}, "secret_env", "every message is signed"),
        (ENTRY | {"secret_file": "x"}, "secret_env", "expected one of"),
        (ENTRY | {"secret_env": "OTHER"}, "secret_env", "'OTHER' is not set"),
        ({"url": "https://a.example/", "secret_file": "none"}, "secret_file", "No such file"),
        (ENTRY | {"url": "http://a.example/"}, "url", "https"),
        (ENTRY | {"url": "a.example"}, "url", "https"),
        (ENTRY | {"url": "https://"}, "url", "https"),
        (ENTRY | {"url": "https://a.example:99999/"}, "url", "https"),
        (ENTRY | {"url": "https://user:hunter2@a.example/"}, "url", "no user, password"),
        (ENTRY | {"url": "https://127.0.0.1/"}, "url", "private address"),
        (ENTRY | {"url": "https://[::1]/"}, "url", "private address"),
        (ENTRY | {"url": "https://169.254.169.254/latest"}, "url", "private address"),
        (ENTRY | {"url": 7}, "1: url: expected", "a text, got a whole number"),
        (ENTRY | {"rules": ["vouchr"]}, "rules", "no rule 'vouchr'"),
        (ENTRY | {"rules": []}, "rules", "length"),
        (ENTRY | {"control": "yes"}, "1: control: expected", "true or false, got a text"),
        (ENTRY | {"ca_file": "none.pem"}, "ca_file", "PEM"),
        (ENTRY | {"retries": 3}, "retries", "unknown field"),
        ("https://a.example/", "entry 1: expected", "a table, got a text"),
    ],
    ids=range(20),
)  # fmt: skip
def test_a_bad_entry_names_its_number_and_field(tmp_path, entry, field, expected) -> None:
    with pytest.raises(WebhookError) as caught:
        read(entry, folder=tmp_path)
    message = str(caught.value)
    assert message.startswith("webhooks, entry 1")
    assert field in message
    assert expected in message
    assert "hunter2" not in message


def test_a_byte_order_mark_is_no_part_of_a_secret(tmp_path) -> None:
    (tmp_path / "secret").write_text(SECRET, "utf-8-sig")
    (webhook,) = read({"url": "https://a.example/", "secret_file": "secret"}, folder=tmp_path)
    assert webhook.secrets == (SECRET,)


@pytest.mark.parametrize(
    "secret",
    ["short", "whsec_", "whsec_abc", "whsec_" + "A" * 30, "whsec_" + "A" * 400, f"{SECRET} " * 3, "é" * 40],
    ids=range(7),
)
def test_a_bad_secret_is_refused_and_not_shown(tmp_path, secret) -> None:
    with pytest.raises(WebhookError, match=r"secret_env: the variable 'HOOK': expected one secret") as caught:
        read(ENTRY, folder=tmp_path, environment={"HOOK": secret})
    assert secret[6:] not in str(caught.value) or not secret[6:]


def test_two_entries_of_one_address_or_too_many_are_refused(tmp_path) -> None:
    with pytest.raises(WebhookError, match="entry 2: url: it is there twice"):
        read(ENTRY, ENTRY, folder=tmp_path)
    with pytest.raises(WebhookError, match="at most"):
        read(*[ENTRY] * (MOST_WEBHOOKS + 1), folder=tmp_path)
    with pytest.raises(WebhookError, match="entries"):
        read_webhooks({"url": "x"}, set(), folder=tmp_path)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
    ],
)
def test_public_addresses(address, expected) -> None:
    assert is_public(address) is expected


class Recorder(httpx.AsyncBaseTransport):
    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request):
        self.requests.append(request)
        return httpx.Response(204)


class Resolver:
    """Names with other addresses at each look-up."""

    def __init__(self, monkeypatch, *answers) -> None:
        self.answers = list(answers)
        monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", self._look_up)

    async def _look_up(self, *args, **options):
        return [(None, None, None, "", (address, 443)) for address in self.answers.pop(0)]


@pytest.mark.anyio
async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch) -> None:
    Resolver(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    inner = Recorder()
    transport = PinnedTransport(inner, allow_private=False)
    await transport.handle_async_request(httpx.Request("POST", "https://shop.example/a?b"))
    (request,) = inner.requests
    assert str(request.url) == "https://93.184.216.34/a?b"
    assert request.headers["host"] == "shop.example"
    assert request.extensions["sni_hostname"] == "shop.example"
    with pytest.raises(AttemptError, match="private_address"):
        await transport.handle_async_request(httpx.Request("POST", "https://shop.example/"))
    assert len(inner.requests) == 1


@pytest.mark.anyio
async def test_one_private_address_of_several_is_refused_unless_allowed(monkeypatch) -> None:
    Resolver(monkeypatch, ["93.184.216.34", "::1"], ["10.0.0.1"])
    inner = Recorder()
    with pytest.raises(AttemptError, match="private_address"):
        await PinnedTransport(inner, allow_private=False).handle_async_request(
            httpx.Request("POST", "https://shop.example/")
        )
    await PinnedTransport(inner, allow_private=True).handle_async_request(
        httpx.Request("POST", "https://shop.example/")
    )
    assert inner.requests[0].url.host == "10.0.0.1"


def test_a_message_is_verified_by_the_library_with_either_secret(tmp_path) -> None:
    newer = new_secret()
    webhook = Webhook(httpx.URL("https://shop.example/"), (newer, SECRET))
    entry = DecisionEntry(3, "17-0", HandedOver("s-1", "voucher", "treatment", 0.41, 5, 1_790_000_000_000))
    message_id, body = message_of(entry)
    headers = signed_headers(webhook, message_id, body, datetime.now(UTC))
    for secret in (newer, SECRET):
        assert Verifier(secret).verify(body, headers) == {
            "type": "intervention.decided",
            "timestamp": "2026-09-21T14:13:20.000+00:00",
            "data": {
                "session_id": "s-1",
                "rule": "voucher",
                "group": "treatment",
                "probability": 0.41,
                "event": 5,
                "idle": False,
            },
        }
    with pytest.raises(WebhookVerificationError):
        Verifier(new_secret()).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Verifier(SECRET).verify(body.replace("0.41", "0.42"), headers)


def test_an_id_depends_on_the_decision_alone() -> None:
    decision = HandedOver("s-1", "voucher", "treatment", 0.41, 5, 1_790_000_000_000)
    one = message_of(DecisionEntry(3, "17-0", decision))
    assert one == message_of(DecisionEntry(3, "17-0", decision))
    assert one[0] != message_of(DecisionEntry(3, "17-1", decision))[0]
    assert one[0].startswith(message_prefix("s-1"))
    assert json.loads(one[1])["data"]["session_id"] == "s-1"


@given(st.integers(1, MOST_ATTEMPTS), st.floats(0, 1), st.floats(0, 3600))
def test_waits_grow_have_a_jitter_and_respect_the_receiver(attempt, chance, asked_s) -> None:
    waited = wait_s(attempt, asked_s=asked_s, chance=lambda: chance)
    base = FIRST_WAIT_S * 3 ** (attempt - 1)
    assert waited >= asked_s
    assert waited == asked_s or 0.5 * base <= waited <= 1.5 * base


def test_all_attempts_end_within_a_day() -> None:
    assert sum(wait_s(attempt, chance=lambda: 1.0) for attempt in range(1, MOST_ATTEMPTS)) < 86_400
