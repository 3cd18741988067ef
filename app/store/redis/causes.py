"""Names of failures: the error word of the server where there is one, for the log, the metrics and readiness."""

import re
from typing import Final

from redis import exceptions

# Errors whose class stands for a word that redis-py removes from the text, the special ones first.
_BY_CLASS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.NoScriptError, "NOSCRIPT"),
)
_WORD: Final = re.compile(
    r"\b(NOPERM|NOAUTH|WRONGPASS|READONLY|OOM|BUSY|MISCONF|LOADING|MASTERDOWN|CLUSTERDOWN|NOREPLICAS|WRONGTYPE|DENIED)\b"
)
_TEXTS: Final = (
    ("CERTIFICATE", "certificate"),
    ("TLS", "ssl"),
    ("WRONGPASS", "invalid username-password"),
    ("NOAUTH", "authentication required"),
    ("NOPERM", "no permission"),
    ("NOPERM", "acl failure"),
    ("NOPERM", "can't access"),
    ("REFUSED", "connection refused"),
    ("REFUSED", "connect call failed"),
    ("UNKNOWN_HOST", "name or service not known"),
    ("OOM", "'maxmemory'"),
)


def cause_of(error: BaseException) -> str:
    """Return one word in capitals for a failure of Redis or of a connection to it, such as `NOPERM` or `TIMEOUT`."""
    behind: BaseException | None = error
    chain: list[BaseException] = []
    while behind is not None and behind not in chain:
        chain.append(behind)
        behind = behind.__cause__ or behind.__context__
    for one in chain:
        if (word := _word(one)) is not None:
            return word
    if any(isinstance(one, TimeoutError | exceptions.TimeoutError) for one in chain):
        return "TIMEOUT"
    if any(isinstance(one, exceptions.ConnectionError | OSError) for one in chain):
        return "CONNECTION"
    return "OTHER"


def _word(error: BaseException) -> str | None:
    text = str(error)
    for kind, word in _BY_CLASS:
        if isinstance(error, kind):
            return word
    if found := _WORD.search(text):
        return found[1]
    lowered = text.lower()
    for word, part in _TEXTS:
        if part in lowered:
            return word
    return "WRONGPASS" if isinstance(error, exceptions.AuthenticationError) else None
