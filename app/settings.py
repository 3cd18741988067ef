"""Every setting of the service, read once from the environment and never changed.

Each is an environment variable: `WILLBUY_` and the field's name in capitals. `docs/settings.md` lists them all.
"""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REDIS_SCHEMES = ("redis", "rediss", "unix")

# The answers of a record are numbered by one byte (app/stores/records.py).
LARGEST_DEDUPE_WINDOW = 255


class Settings(BaseSettings):
    """What an operator can choose. Frozen; invalid values are refused when the service starts."""

    model_config = SettingsConfigDict(
        env_prefix="WILLBUY_",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # A refused value may be a URL with a password in it.
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    artifact: Path
    """The model: the file that `willbuy train` writes."""

    artifact_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """SHA-256 that the artifact must have, in hexadecimal. Loading an artifact runs the code in it, so set this
    wherever the file comes over a network."""

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the model runs. `auto` takes a GPU when there is one; one step is so small that a CPU usually wins."""

    state_dtype: Literal["float16", "float32"] = "float16"
    """How a session's hidden state is stored: `float16` halves the record, `float32` keeps answers within 1e-5 of the
    offline model instead of 2e-3. Records of the other kind are rebuilt from the session's history."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The server that holds all sessions: `redis://`, `rediss://` (TLS) or `unix://`, with user and password inside."""

    redis_timeout_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Longest wait for Redis to accept a connection, or to answer one round trip."""

    redis_max_connections: Annotated[int, Field(ge=2, le=1024)] = 16
    """Most connections of one replica to Redis; further callers wait for a free one, at most `redis_timeout_s`."""

    session_idle_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 1800
    """Idle time after which a session ends and everything stored of it vanishes."""

    max_session_events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Most events of one session; more are refused (`session_full`). Bounds the history, so a rebuild too."""

    dedupe_window: Annotated[int, Field(ge=1, le=LARGEST_DEDUPE_WINDOW)] = 64
    """How many of a session's last events are remembered with their answers; an `event_id` among them is answered
    again and not folded again. An older one would be folded a second time."""

    max_event_age_s: Annotated[int, Field(ge=1)] = 86400
    """How far in the past an event's timestamp may lie; older ones are refused."""

    max_event_ahead_s: Annotated[int, Field(ge=0)] = 300
    """How far ahead of the server's clock a timestamp may lie; within it the server's clock is taken instead."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096)] = 256
    """Most sessions that are stepped together."""

    max_queue: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Most events that may wait for a batch; more are refused at once (`overloaded`)."""

    commit_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """How often an event is tried when other replicas commit to its session at the same time, before `conflict`."""

    request_timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    """Deadline of one request, from its first byte to its answer; past it the caller gets `deadline_exceeded`, and an
    event that was still waiting for a batch is not folded."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 65536
    """Largest request body; a larger one is refused (`body_too_large`)."""

    log_format: Literal["console", "json"] = "json"
    """`json`: one object a line, for log collectors. `console`: coloured, for people."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is written."""

    @field_validator("redis_url")
    @classmethod
    def _supported_url(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.scheme not in REDIS_SCHEMES:
            raise ValueError("must start with redis://, rediss:// or unix://")
        if parts.scheme == "unix" and not parts.path:
            raise ValueError("must name the socket's path: unix:///run/redis/redis.sock")
        if parts.scheme != "unix":
            if not parts.hostname:
                raise ValueError("must name a host: redis://host:6379/0")
            _ = parts.port  # raises ValueError for a port that is no port
            if parts.path.strip("/") and not parts.path.strip("/").isdecimal():
                raise ValueError("must end in a database number: redis://host:6379/0")
        return value

    @model_validator(mode="after")
    def _one_round_trip_fits_the_deadline(self) -> Self:
        if self.redis_timeout_s > self.request_timeout_s:
            raise ValueError("redis_timeout_s must not be larger than request_timeout_s")
        return self

    @property
    def masked_redis_url(self) -> str:
        """The Redis URL without its password and options, fit for logs."""
        parts = urlsplit(self.redis_url.get_secret_value())
        user_part, separator, host_part = parts.netloc.rpartition("@")
        user = f"{user_part.partition(':')[0]}:***@" if separator else ""
        return f"{parts.scheme}://{user}{host_part}{parts.path}"
