"""Secrets of webhooks."""

import base64
import os


def new_secret() -> str:
    """Return a new random secret in the form of Standard Webhooks."""
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()
