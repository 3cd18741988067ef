"""Check of the address to listen on, before anything is started."""

import errno
import socket
from pathlib import Path


class AddressError(Exception):
    """The service cannot listen there; one line that begins with the option's name."""


def check_address(host: str, port: int) -> None:
    """Raise `AddressError` if the host has no address here, or if the port is in use or not allowed."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise AddressError(f"--host {host}: {getattr(exc, 'strerror', None) or exc}") from exc
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as listener:
                # As the server does: the connections of a former one do not keep the port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
        except OSError as exc:
            is_port = isinstance(exc, PermissionError) or exc.errno == errno.EADDRINUSE
            raise AddressError(f"{f'--port {port}' if is_port else f'--host {host}'}: {exc.strerror}") from exc


def check_unix_socket(path: Path) -> None:
    """Remove the socket that a dead server left; raise `AddressError` if the service cannot listen at this path."""
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            if path.is_socket():
                try:
                    listener.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
                else:
                    raise AddressError(f"--uds {path}: another server listens there")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        path.unlink()
    except OSError as exc:
        raise AddressError(f"--uds {path}: {exc.strerror or exc}") from exc
