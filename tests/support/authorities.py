"""One TLS context for the HTTP clients of a test process: reading the authorities takes 30 ms of processor's time.

`httpx.get` makes a client, and so a context, for each call; tests poll by it.
"""

import os
import ssl
from functools import cache
from typing import Any, Final

from httpx._config import create_ssl_context
from httpx._transports import default  # private: httpx has no public way to change the context of `httpx.get`

# They name other authorities.
_ELSEWHERE: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def share_authorities() -> None:
    """Give each client that asks for nothing else the same context."""
    setattr(default, create_ssl_context.__name__, _context)


def _context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    if verify is True and cert is None and not any(map(os.environ.get, _ELSEWHERE)):
        return _shared()
    return create_ssl_context(verify, cert, trust_env)


@cache
def _shared() -> ssl.SSLContext:
    return create_ssl_context()
