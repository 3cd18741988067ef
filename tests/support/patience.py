"""Long time-outs for services and clients whose tests are of something else, so that a busy machine fails no test.

A test of a time-out gives its own. A hang ends with the test's own time-out, see `tests/conftest.py`.
"""

import os
from typing import Final

from httpx._config import DEFAULT_TIMEOUT_CONFIG  # private: httpx has no public way to change its default

# Of each service: variables of `Settings`.
PATIENT: Final = {"WILLBUY_REDIS_TIMEOUT_S": "10", "WILLBUY_REQUEST_TIMEOUT_S": "30"}
_CLIENT_S: Final = 30.0


def be_patient() -> None:
    """Set these variables for this process, and make httpx wait longer than five seconds for an answer."""
    os.environ |= PATIENT
    for wait in ("connect", "read", "write", "pool"):
        setattr(DEFAULT_TIMEOUT_CONFIG, wait, _CLIENT_S)


def service_environment() -> dict[str, str]:
    """Return this process's environment with no other settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WILLBUY_")} | PATIENT
