"""Clients that send many requests at once and leave, against a real process."""

import socket
import struct

import httpx
import pytest

REQUESTS = [
    ("GET /healthz", b""),
    ("GET /readyz", b""),
    ("GET /v1/stats", b""),
    ("GET /v1/sessions/s-1?trace=true", b""),
    ("POST /v1/events", b'{"session_id":"s-1","event_name":"view_item"}'),
    ("POST /v1/events/batch", b'[{"session_id":"s-1","event_name":"view_item"}]'),
]
RESET = struct.pack("ii", 1, 0)


@pytest.mark.parametrize("redis", ["up", "down"])
def test_a_client_that_pipelines_and_leaves_is_no_error(service, valkey, redis):
    running = service(redis_url=valkey.url if redis == "up" else "redis://127.0.0.1:1/0", log_level="info")
    for start, body in REQUESTS:
        head = (
            f"{start} HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        for leave in ("close", "reset", "reset after the first answer"):
            with socket.create_connection(("127.0.0.1", running.port)) as client:
                client.sendall((head.encode() + body) * 40)
                if leave != "close":
                    if "after" in leave:
                        client.recv(1)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    # Answered in turn, so whatever the requests before have written is in the log.
    for _ in range(20):
        assert httpx.get(f"{running.base_url}/healthz").status_code == 200
    running.stop()
    assert running.tracebacks() == []
    assert "ERROR" not in running.output()
