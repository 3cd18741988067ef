"""One request for each body: whatever a head says, no body is taken for the next request, and none is lost."""

import json
import shutil
import socket
import subprocess

import httpx
import pytest
from support.raw_http import answers_of
from support.service import Service

EVENT = {"session_id": "s-1", "event_name": "view_item", "item_id": "SKU-1"}
# Answered by anybody who takes it for a request.
INNER = b"GET /openapi.json HTTP/1.1\r\nHost: inner\r\n\r\n"
UPGRADES = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n",
    b"connection: keep-alive, upgrade\r\nupgrade: TLS/1.0\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade, close\r\n",
]


@pytest.fixture(scope="module")
def shared(shared_valkey, artifact, tmp_path_factory):
    service = Service(
        tmp_path_factory.mktemp("smuggling") / "service.log",
        {"artifact": artifact, "redis_url": shared_valkey.url},
    )
    service.start()
    yield service
    service.stop()


def request(method, path, body=b"", headers=b"", *, chunked=False):
    head = b"%b %b HTTP/1.1\r\nHost: shop\r\n%b" % (method, path, headers)
    if chunked:
        parts = [body[at : at + 7] for at in range(0, len(body), 7)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


JSON = b"Content-Type: application/json\r\n"
NDJSON = b"Content-Type: application/x-ndjson\r\n"


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "pieces"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_an_offered_upgrade_is_ignored_and_the_body_read(shared, upgrade, chunked, in_pieces) -> None:
    event = json.dumps(EVENT).encode()
    lines = b"\n".join([event] * 3)
    sent = [
        request(b"POST", b"/v1/events", event, JSON, chunked=chunked),
        request(b"POST", b"/v1/events", event, JSON + upgrade, chunked=chunked),
        request(b"POST", b"/v1/events/batch", lines, NDJSON + upgrade, chunked=chunked),
        request(b"POST", b"/v1/sessions/s-1/outcome", b"{}", JSON + upgrade, chunked=chunked),
        request(b"GET", b"/healthz", b"", upgrade),
        request(b"POST", b"/healthz", INNER, upgrade, chunked=chunked),
        request(b"GET", b"/healthz", INNER, upgrade, chunked=chunked),
    ]
    for one, status in zip(sent, [200, 200, 200, 422, 200, 405, 200], strict=True):
        # When it comes, and another follows on the same connection
        found = answers_of(shared.port, one + request(b"GET", b"/readyz"), in_pieces=in_pieces)
        # Then each is answered, unless the first closes the connection, and the body is no third
        closes = b"close" in upgrade and one is not sent[0]
        assert [answer.status for answer in found] == ([status] if closes else [status, 200])
        if b"batch" in one:
            assert [item["status"] for item in json.loads(found[0].body)["results"]] == [200] * 3


def test_upgrades_follow_each_other_on_one_connection(shared) -> None:
    event = json.dumps(EVENT).encode()
    pipelined = b"".join(request(b"POST", b"/v1/events", event, JSON + UPGRADES[at % 3]) for at in range(6))
    assert [answer.status for answer in answers_of(shared.port, pipelined)] == [200] * 6


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_that_offers_http2_is_served(shared, tmp_path) -> None:
    (tmp_path / "events").write_text("\n".join(json.dumps(EVENT | {"session_id": f"c-{at}"}) for at in range(4)))
    command = ["curl", "-sS", "--http2", "--max-time", "30", "-H", "Content-Type: application/x-ndjson"]
    command += ["--data-binary", f"@{tmp_path / 'events'}", f"{shared.base_url}/v1/events/batch"]
    found = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert [item["status"] for item in json.loads(found.stdout)["results"]] == [200] * 4


LENGTH = b"Content-Length: %d\r\n" % len(INNER)
CHUNK = b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (LENGTH + b"Transfer-Encoding: chunked\r\n", CHUNK + INNER),
        (b"Transfer-Encoding: chunked\r\n" + LENGTH, CHUNK + INNER),
        (b"Content-Length: 0\r\n" + LENGTH, INNER),
        (LENGTH + b"Content-Length: 0\r\n", INNER),
        (b"Content-Length: 0, %d\r\n" % len(INNER), INNER),
        (b"Content-Length: %d, %d\r\n" % (len(INNER), len(INNER)), INNER),
        (b"Content-Length: +0\r\n", INNER),
        (b"Content-Length: -1\r\n", INNER),
        (b"Content-Length: 0x0\r\n", INNER),
        (b"Content-Length: \r\n", INNER),
        (b"Content-Length : %d\r\n" % len(INNER), INNER),
        (b"Content-Length\t: %d\r\n" % len(INNER), INNER),
        (b" Content-Length: %d\r\n" % len(INNER), INNER),
        (b"Content-Length:\r\n %d\r\n" % len(INNER), INNER),
        (b"X-A: b\r\n Content-Length: %d\r\n" % len(INNER), INNER),
        (b"Content-Length: %d\n" % len(INNER), INNER),
        (b"X-A: b\n" + LENGTH, INNER),
        (b"X-A: b\rContent-Length: %d\r\n" % len(INNER), INNER),
        (b"X-A: b\0" + LENGTH, INNER),
        (b"Transfer-Encoding: identity\r\n", INNER),
        (b"Transfer-Encoding: gzip\r\n", INNER),
        (b"Transfer-Encoding: chunked, identity\r\n", CHUNK + INNER),
        (b"Transfer-Encoding: xchunked\r\n" + LENGTH, INNER),
        (b"Transfer-Encoding : chunked\r\n" + LENGTH, CHUNK + INNER),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNK + INNER),
        (b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH, CHUNK + INNER),
        (b"Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n" + INNER),
        (b"Transfer-Encoding: chunked\r\n", b"-1\r\n\r\n" + INNER),
        (b"Transfer-Encoding: chunked\r\n", b"\n" + INNER),
        (b"Transfer-Encoding: chunked\r\n", b"0\n\n" + INNER),
        (b"Transfer-Encoding: chunked\r\n", b"10000000000000000\r\n" + INNER),
    ],
)
@pytest.mark.parametrize("upgrade", [b"", UPGRADES[0]], ids=["plain", "upgrade"])
def test_a_body_of_doubtful_length_never_becomes_a_request(shared, upgrade, headers, body) -> None:
    for path in (b"/healthz", b"/v1/events"):
        head = b"POST %b HTTP/1.1\r\nHost: shop\r\n%b%b%b\r\n" % (path, JSON, upgrade, headers)
        found = answers_of(shared.port, head + body)
        # Only an empty chunk at the end of a chunked body may be followed by a request
        assert len(found) <= 1, found
        assert all(not answer.body.startswith(b'{"openapi"') for answer in found)
        assert all(answer.status >= 400 for answer in found)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"CONNECT shop:443 HTTP/1.1\r\nHost: shop\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: shop\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 40,
        request(b"POST", b"/v1/events", b"", JSON).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"zz\r\n",
    ],
)
def test_what_is_not_http_is_a_problem(shared, sent) -> None:
    (answer,) = answers_of(shared.port, sent)
    assert answer.status in {400, 404}
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["status"] == answer.status
    if answer.status == 400:
        assert json.loads(answer.body)["code"] == "malformed_request"
        assert answer.headers["connection"] == "close"


def test_what_is_not_http_is_no_answer_to_the_request_before(shared) -> None:
    event = json.dumps(EVENT).encode()
    found = answers_of(shared.port, request(b"POST", b"/v1/events", event, JSON) + b"nonsense\r\n\r\n")
    assert found[0].status == 200
    assert all(answer.status == 400 for answer in found[1:])


def test_a_path_that_is_not_utf8_is_no_session(shared) -> None:
    for method in ("GET", "DELETE"):
        response = httpx.request(method, f"{shared.base_url}/v1/sessions/%FF")
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert httpx.get(f"{shared.base_url}/v1/sessions/%EF%BF%BD").status_code == 404
    assert httpx.get(f"{shared.base_url}/v1/sessions/%00").status_code == 422


def test_the_service_lives_on(shared) -> None:
    with socket.create_connection(("127.0.0.1", shared.port)):
        assert httpx.get(f"{shared.base_url}/healthz").json() == {"status": "ok"}
