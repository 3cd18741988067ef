"""A real HTTP server on loopback with scripted answers: of a gateway, an overloaded service or another program."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """A scripted answer.

    Attributes:
        silent: never answer, until the server stops.
        drops: answer one byte at a time and never end, until the server stops.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    drops: bool = False


@dataclass(frozen=True)
class Received:
    """A received request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """Answers the n-th request with the n-th reply; further requests get the last reply."""

    replies: list[Reply]
    url: str = ""
    received: list[Received] = field(default_factory=list)


@contextmanager
def scripted_server(*replies: Reply) -> Iterator[ScriptedServer]:
    """Serve the replies inside the context."""
    script = ScriptedServer(list(replies))
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            script.received.append(
                Received(
                    self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, self.rfile.read(length)
                )
            )
            reply = script.replies[min(len(script.received), len(script.replies)) - 1]
            if reply.silent:
                over.wait()
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.drops:
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                while not over.wait(0.02):
                    self.wfile.write(b" ")
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            """Log nothing."""

        def handle(self) -> None:
            with suppress(OSError):  # the client gave up, as some are meant to
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
