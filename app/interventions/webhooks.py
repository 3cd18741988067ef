"""Webhooks: where decisions are sent, and one attempt to send one (https://www.standardwebhooks.com).

    [[webhooks]]
    url = "https://shop.example/hooks/willbuy"
    secret_env = "WEBHOOK_SECRET"      # or secret_file = "path"; `whsec_` and base64, two of them during a rotation
    rules = ["voucher"]                # optional: all rules otherwise
    control = false                    # optional: whether decisions of held-out sessions are sent, too
    allow_private = false              # optional: whether private addresses are allowed
    ca_file = "path"                   # optional: certificate authorities in PEM, instead of the system's

An address is checked after the name is resolved, and the connection goes to the checked address: a name that resolves
to another address a moment later (DNS rebinding) gains nothing. Redirects are not followed, proxies of the environment
are not used, and no response body is read.
"""

import asyncio
import base64
import binascii
import os
import ssl
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from socket import SOCK_STREAM, gaierror
from typing import Annotated, Any, Final

import httpx
import msgspec
from standardwebhooks import Webhook as Signer

from model.interventions.rules import in_words_of_toml

MOST_WEBHOOKS: Final = 16
ATTEMPT_S: Final = 10.0
"""Longest duration of one attempt, from the look-up of the name to the response's status."""
_CONNECTIONS: Final = 8
_IDLE_CONNECTION_S: Final = 30.0
_MOST_ADDRESSES: Final = 4
_MOST_SECRETS: Final = 2
# Sizes of a key that the specification allows, in bytes.
_SECRET_BYTES: Final = (24, 64)
_SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix is public
_MOST_RETRY_AFTER_S: Final = 3600.0
_HTTPS_PORT: Final = 443
_LARGEST_PORT: Final = 65_535
# IPv6 addresses that stand for an IPv4 address behind a translator (RFC 6052).
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
_OK: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)


class WebhookError(ValueError):
    """An entry of `[[webhooks]]` cannot be used; the message names its number and field, and shows no secret."""


class AttemptError(Exception):
    """An attempt failed.

    Args:
        cause: a word for metrics and logs.
        is_final: whether the receiver wants no other attempt.
        retry_after_s: seconds that the receiver asks to wait.
    """

    def __init__(self, cause: str, *, is_final: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(cause)
        self.cause = cause
        self.is_final = is_final
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver of decisions.

    Attributes:
        url: where to post.
        secrets: that sign; two during a rotation, so that the receiver accepts either.
        rules: whose decisions are sent; None: all rules'.
        control: whether decisions of the control group are sent, too.
        allow_private: whether the name may resolve to a private, loopback or link-local address.
        ca_file: certificate authorities; None: the system's.
    """

    url: httpx.URL = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    rules: frozenset[str] | None = None
    control: bool = False
    allow_private: bool = False
    ca_file: Path | None = None

    @property
    def name(self) -> str:
        """Name in API, metrics and log: the host, and a digest of the whole address, whose path may be a secret."""
        return f"{self.url.host}-{sha256(str(self.url).encode()).hexdigest()[:8]}"

    def wants(self, rule: str, group: str) -> bool:
        """Return whether a decision of this rule and group is sent here."""
        return (self.rules is None or rule in self.rules) and (self.control or group != "control")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[webhooks]]` table."""

    url: Annotated[str, msgspec.Meta(max_length=2048)]
    secret_env: str | None = None
    secret_file: str | None = None
    rules: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None
    control: bool = False
    allow_private: bool = False
    ca_file: str | None = None


def read_webhooks(
    tables: Any,  # noqa: ANN401 - whatever the file holds
    rules: Collection[str],
    *,
    folder: Path,
    environment: Mapping[str, str] = os.environ,
) -> tuple[Webhook, ...]:
    """Return the webhooks of a parsed file.

    Args:
        tables: the value of `webhooks`.
        rules: names of the file's rules.
        folder: of the file; relative paths start there.
        environment: where `secret_env` is looked up.

    Raises:
        WebhookError: an entry cannot be used.
    """
    if not isinstance(tables, list):
        raise WebhookError("webhooks: expected [[webhooks]] entries")
    if len(tables) > MOST_WEBHOOKS:
        raise WebhookError(f"webhooks: expected at most {MOST_WEBHOOKS}, not {len(tables)}")
    found: dict[str, Webhook] = {}
    for number, table in enumerate(tables, start=1):
        where = f"webhooks, entry {number}"
        try:
            entry = msgspec.convert(table, _Entry)
        except msgspec.ValidationError as exc:
            # The messages name the field and the expected type, and no value.
            message, _, place = str(exc).partition(" - at ")
            name = place.strip("`").removeprefix("$").removeprefix(".")
            fault = in_words_of_toml(message)
            raise WebhookError(f"{where}: {name}: {fault}" if name else f"{where}: {fault}") from None
        url = _url(entry, where)
        unknown = sorted(set(entry.rules or ()) - set(rules))
        if unknown:
            known = ", ".join(sorted(rules)) or "none"
            raise WebhookError(f"{where}: rules: there is no rule {unknown[0]!r}; the file's rules are {known}")
        webhook = Webhook(
            url=url,
            secrets=_secrets(entry, where, folder, environment),
            rules=None if entry.rules is None else frozenset(entry.rules),
            control=entry.control,
            allow_private=entry.allow_private,
            ca_file=None if entry.ca_file is None else folder / entry.ca_file,
        )
        _tls(webhook, where)
        if webhook.name in found:
            raise WebhookError(f"{where}: url: it is there twice; name all its rules in one entry")
        found[webhook.name] = webhook
    return tuple(found.values())


def signed_headers(webhook: Webhook, message_id: str, body: str, now: datetime) -> dict[str, str]:
    """Return the headers of the Standard Webhooks form: id, time of the attempt, one signature a secret."""
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(message_id, now, body) for secret in webhook.secrets),
    }


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, also where it only carries an IPv4 address."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found in _TRANSLATED:
            return is_public(str(IPv4Address(int(found) & 0xFFFFFFFF)))
        carried = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if carried is not None:
            return is_public(str(carried))
    return found.is_global and not found.is_multicast


class PinnedTransport(httpx.AsyncBaseTransport):
    """Connects to addresses that it has looked up and checked itself.

    Args:
        inner: sends the request.
        allow_private: whether every address is allowed.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, *, allow_private: bool) -> None:
        self._inner = inner
        self._allow_private = allow_private

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, request.url.port or _HTTPS_PORT, type=SOCK_STREAM
            )
        except (gaierror, UnicodeError) as exc:
            raise AttemptError("name_not_found") from exc
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))[:_MOST_ADDRESSES]
        if not self._allow_private and not all(map(is_public, addresses)):
            raise AttemptError("private_address")
        for place, address in enumerate(addresses):
            # The header `Host` is set already; certificate and server name are those of the name.
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if place == len(addresses) - 1:
                    raise
        raise AttemptError("name_not_found")

    async def aclose(self) -> None:
        await self._inner.aclose()


class Receiver:
    """A webhook with its connections.

    Args:
        webhook: the receiver.

    Raises:
        WebhookError: its certificate authorities cannot be read.
    """

    def __init__(self, webhook: Webhook) -> None:
        self.webhook = webhook
        limits = httpx.Limits(
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_CONNECTIONS,
            keepalive_expiry=_IDLE_CONNECTION_S,
        )
        inner = httpx.AsyncHTTPTransport(verify=_tls(webhook, webhook.name), limits=limits, trust_env=False)
        # One client a webhook: connections are kept by address, and must not serve another webhook's name.
        self._client = httpx.AsyncClient(
            transport=PinnedTransport(inner, allow_private=webhook.allow_private),
            timeout=ATTEMPT_S,
            follow_redirects=False,
            trust_env=False,
            headers={"user-agent": "willbuy"},
        )

    async def post(self, message_id: str, body: str) -> None:
        """Send a message once; raise `AttemptError` unless the receiver answers with a status of 200 to 299.

        Args:
            message_id: the same in every attempt, so that the receiver can recognise a message it has.
            body: JSON.
        """
        headers = signed_headers(self.webhook, message_id, body, datetime.now(UTC))
        try:
            async with (
                asyncio.timeout(ATTEMPT_S),
                self._client.stream("POST", self.webhook.url, content=body.encode(), headers=headers) as response,
            ):
                status, retry_after = response.status_code, response.headers.get("retry-after", "")
        except (httpx.TimeoutException, TimeoutError) as exc:
            raise AttemptError("timeout") from exc
        except httpx.ConnectError as exc:
            raise AttemptError(
                "tls" if any(isinstance(one, ssl.SSLError) for one in _chain(exc)) else "connect"
            ) from exc
        except httpx.HTTPError as exc:
            raise AttemptError("protocol") from exc
        if status in _OK:
            return
        seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
        raise AttemptError(
            "redirect" if status in _REDIRECTS else f"status_{status}",
            is_final=status == httpx.codes.GONE,
            retry_after_s=min(seconds, _MOST_RETRY_AFTER_S),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _url(entry: _Entry, where: str) -> httpx.URL:
    try:
        url = httpx.URL(entry.url)
    except (httpx.InvalidURL, UnicodeError):
        raise WebhookError(f"{where}: url: expected an https address") from None
    if url.scheme != "https" or not url.host or not 0 < (url.port or _HTTPS_PORT) <= _LARGEST_PORT:
        raise WebhookError(f"{where}: url: expected an https address")
    if url.userinfo or url.fragment:
        raise WebhookError(f"{where}: url: expected no user, password or fragment")
    try:
        literal = ip_address(url.host)
    except ValueError:
        return url
    if not entry.allow_private and not is_public(str(literal)):
        raise WebhookError(f"{where}: url: {literal} is a private address; allow_private = true allows it")
    return url


def _secrets(entry: _Entry, where: str, folder: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    if (entry.secret_env is None) == (entry.secret_file is None):
        raise WebhookError(f"{where}: expected one of secret_env and secret_file: every message is signed")
    if entry.secret_env is not None:
        place = f"{where}: secret_env: the variable {entry.secret_env!r}"
        text = environment.get(entry.secret_env, "")
        if not text.strip():
            raise WebhookError(f"{place} is not set")
    else:
        path = folder / (entry.secret_file or "")
        place = f"{where}: secret_file: {path}"
        try:
            # Some editors write a byte order mark.
            text = path.read_text("utf-8-sig")
        except OSError as exc:
            raise WebhookError(f"{place}: {exc.strerror}") from None
        except UnicodeDecodeError:
            raise WebhookError(f"{place}: expected UTF-8") from None
    found = text.split()
    if not 1 <= len(found) <= _MOST_SECRETS or not all(map(_is_secret, found)):
        low, high = _SECRET_BYTES
        raise WebhookError(
            f"{place}: expected one secret, or two during a rotation: "
            f"{_SECRET_PREFIX} and {low} to {high} bytes in base64"
        )
    return tuple(found)


def _is_secret(text: str) -> bool:
    if not text.startswith(_SECRET_PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    low, high = _SECRET_BYTES
    return low <= len(key) <= high


def _tls(webhook: Webhook, where: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=webhook.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise WebhookError(f"{where}: ca_file: {webhook.ca_file}: expected certificates in PEM") from exc
