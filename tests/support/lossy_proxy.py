"""A TCP proxy on loopback that loses answers: the server executes the request, but the client gets no reply."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class LossyProxy:
    """Forwards bytes; of the next `to_lose` answers only `passed_bytes`, then it closes the connection.

    The service answers when it has committed, so an answer lost here is one to an event that counts.
    """

    def __init__(self, target_port: int) -> None:
        self.to_lose = 0
        self.passed_bytes = 0
        self.lost = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept connections until `close`."""
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(caller,), daemon=True).start()

    def close(self) -> None:
        """Stop and close every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _connect(self, caller: socket.socket) -> None:
        with suppress(OSError), caller, socket.create_connection(("127.0.0.1", self._target_port)) as service:
            with self._lock:
                self._ends |= {caller, service}
            try:
                self._pass_on(caller, service)
            finally:
                with self._lock:
                    self._ends -= {caller, service}

    def _pass_on(self, caller: socket.socket, service: socket.socket) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(caller, selectors.EVENT_READ)
            ready.register(service, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    from_caller = key.fileobj is caller
                    chunk = (caller if from_caller else service).recv(65536)
                    if not chunk:
                        return
                    if from_caller:
                        service.sendall(chunk)
                        continue
                    with self._lock:
                        loses = self.to_lose > 0
                        self.to_lose -= loses
                        self.lost += loses
                    if loses:
                        caller.sendall(chunk[: self.passed_bytes])
                        return
                    caller.sendall(chunk)


@contextmanager
def lossy_proxy(target_port: int) -> Iterator[LossyProxy]:
    """Run a proxy inside the context."""
    proxy = LossyProxy(target_port)
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
