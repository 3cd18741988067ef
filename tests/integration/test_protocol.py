"""What a connection may send before there is a request, against a real server and its sockets."""

import socket
import threading
import time

import pytest
import uvicorn

from app.runtime import http_protocol as protocol
from app.runtime.http_protocol import MOST_BYTES, BoundedHttp


async def echo(scope, receive, send):
    """Answers with how many headers there were and how long the body was."""
    assert scope["type"] == "http"
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    names = [name for name, _ in scope["headers"]]
    body = b"%d headers, %d bytes, %d trailers" % (len(names), size, names.count(b"x-trailer"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    config = uvicorn.Config(echo, port=0, http=BoundedHttp, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        yield connection


def answer_of(connection, until=b"trailers"):
    """What is answered, up to these words or the end of the connection."""
    answer = b""
    while until not in answer:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:  # closed with something of ours unread
            break
        if not part:
            break
        answer += part
    return answer


def flood(connection, part):
    """Send until the other end has had enough; return how many bytes that took."""
    sent = 0
    try:
        while sent < 64 * MOST_BYTES:
            connection.sendall(part)
            sent += len(part)
    except OSError:
        return sent
    return sent


POST = b"POST / HTTP/1.1\r\nHost: shop\r\n"


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /", b"a" * 4096),
        (b"GET / HTTP/1.1\r\nHost: shop\r\nX-Long: ", b"a" * 4096),
        (b"GET / HTTP/1.1\r\nHost: shop\r\n", b"X-Many: a\r\n" * 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: a\r\n" * 300),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ", b"a" * 4096),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 4096),
    ],
)
def test_what_never_becomes_a_request_is_cut_off(connection, start, part) -> None:
    connection.sendall(start)
    assert flood(connection, part) < 64 * MOST_BYTES


def test_a_head_that_does_not_end_is_told_why(connection) -> None:
    # One byte too many, so that nothing is left unread when the connection is closed
    connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ".ljust(MOST_BYTES + 1, b"a"))
    assert answer_of(connection).startswith(b"HTTP/1.1 431 ")


def test_large_bodies_and_many_requests_on_one_connection_pass(connection) -> None:
    for _ in range(3):
        connection.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + b"a" * 1_000_000)
        assert b"1000000 bytes" in answer_of(connection)
    for _ in range(300):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Padding: " + b"a" * 1000 + b"\r\n\r\n")
        assert b"2 headers" in answer_of(connection)


def test_a_request_may_come_in_pieces_of_one_byte(connection) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
        connection.sendall(bytes([byte]))
    assert b"2 headers, 3 bytes" in answer_of(connection)


def test_trailers_do_not_pass_for_headers(connection) -> None:
    connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: a\r\n\r\n")
    assert b"2 headers, 3 bytes, 0 trailers" in answer_of(connection)
    # And the next request of the connection has its headers again
    connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nX-Trailer: a\r\n\r\n")
    assert b"2 headers, 0 bytes, 1 trailers" in answer_of(connection)


@pytest.mark.parametrize(("requests", "start"), [(0, b""), (0, b"GET / HT"), (1, b"GET / HT")])
def test_who_does_not_finish_a_head_is_not_waited_for(monkeypatch, port, requests, start) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for _ in range(requests):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            assert b"1 headers" in answer_of(connection)
        connection.sendall(start)
        # The end of the connection, and no time-out of this test
        assert answer_of(connection) == b""
