"""The Redis user of docs/operate.md."""

import re

from support.paths import ROOT
from support.redis_servers import RedisServer

PASSWORD = "of/the#service"


def documented_user(name: str = "willbuy", prefix: str = "wb:") -> list[str]:
    """Return the words of the command that docs/operate.md gives, for a user and a prefix of keys."""
    page = (ROOT / "docs/operate.md").read_text()
    (found,) = re.findall(r"^ACL SETUSER willbuy .*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    command = str(found).replace("SETUSER willbuy", f"SETUSER {name}").replace("~wb:*", f"~{prefix}*")
    return command.replace(">PASSWORD", f">{PASSWORD}").split()


def url_of(started: RedisServer, name: str = "willbuy") -> str:
    """Return the URL of a server for that user."""
    return started.url.replace("//", f"//{name}:of%2Fthe%23service@")
