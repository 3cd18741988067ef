"""The HTTP server of `willbuy serve`: uvicorn's, which says where it listens once it does."""

import socket
from collections.abc import Callable

import uvicorn


class Server(uvicorn.Server):
    """One process' server.

    Args:
        config: the server's options.
        on_listening: called with the address, once connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then listen."""
        await super().startup(sockets)
        if self.started:
            self._on_listening(address_of(self.config, sockets or list(self.servers[0].sockets)))


def listening_socket(config: uvicorn.Config) -> socket.socket:
    """Return the socket that worker processes share; connections wait in it until a worker accepts them."""
    listener = config.bind_socket()
    listener.listen(config.backlog)
    return listener


def address_of(config: uvicorn.Config, listeners: list[socket.socket]) -> str:
    """Return where a server listens, as text for people; of port 0, the port that was free."""
    if config.uds is not None:
        return f"the Unix socket {config.uds}"
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listeners[0].getsockname()[1]}"
