"""Every setting of the service, read once from the environment and never changed.

Each is an environment variable: `WILLBUY_` and the field's name in capitals. `docs/settings.md` lists them all.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.store.redis.address import masked_url, parse_address

# The answers of a record are numbered by one byte (app/store/record_codec.py).
LARGEST_DEDUPE_WINDOW = 255
# Scheme, host and port and nothing after: what browsers send as `Origin`. No `*`: any page could then ask.
_ORIGIN = r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?$"


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

    watch_artifact_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """How often to look whether another file stands at the artifact's path, to load it without a restart; 0: never."""

    allow_reload: bool = False
    """Whether `POST /v1/model/reload` loads the artifact's path anew although access is open and anybody may call it;
    with API keys, their scope `model:admin` says who may."""

    shadow_artifact: Path | None = None
    """A candidate that scores some sessions beside the model, seen in the metrics alone."""

    shadow_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the sessions that the candidate scores."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. `auto` steps a batch on both where there is a GPU, takes the quicker and says so in the
    log; one step is so small that it need not be the GPU."""

    state_dtype: Literal["float16", "float32"] = "float16"
    """How a session's hidden state is stored: `float16` halves the record, `float32` keeps answers within 1e-5 of the
    offline model instead of 2e-3. Records of the other kind are rebuilt from the session's history."""

    base_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of sessions that buy in the live shop, where it differs from the log that the model was trained on; the
    probabilities are shifted to it. None: as trained. Stored states do not depend on it, so it may be changed."""

    api_keys_file: Path | None = None
    """TOML file of the API keys that are let in (`willbuy key new`), read again when it changes; docs/security.md."""

    api_keys: SecretStr | None = None
    """The same entries as a JSON list, where a file is no way; both may be given."""

    open_access: bool = False
    """Whether everybody who reaches the service may do everything, without a key. For trying out."""

    key_events_per_s: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """Events and other requests a second of a key that has no limit of its own, on average over ten seconds, all
    replicas together; 0: as many as it likes."""

    metrics_public: bool = True
    """Whether `/metrics` is read without a key; else it needs one with `sessions:read`."""

    cors_origins: Annotated[tuple[Annotated[str, Field(pattern=_ORIGIN)], ...], NoDecode] = ()
    """Origins whose pages may call the API from a browser, by commas: `https://desk.example`; none: no CORS."""

    max_head_bytes: Annotated[int, Field(ge=1024, le=65536)] = 16384
    """Largest head of a request, which is its address and headers; a larger one is refused (`head_too_large`)."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """What holds all sessions: `redis://`, `unix://`, `redis+cluster://host:port,...` or
    `redis+sentinel://host:port,.../service`, with user and password inside; `rediss` instead of `redis` is TLS."""

    redis_ca_file: Path | None = None
    """Certificates that TLS to Redis trusts, in PEM; without it, the system's."""

    redis_sentinel_username: str | None = None
    """User at the sentinels, which are no part of the servers' users."""

    redis_sentinel_password: SecretStr | None = None
    """Password at the sentinels."""

    redis_timeout_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Longest wait for one answer of Redis, connecting and waiting for a free connection included."""

    redis_max_connections: Annotated[int, Field(ge=2, le=1024)] = 16
    """Most connections of one replica to one Redis server; further callers wait for a free one."""

    redis_failures_to_open: Annotated[int, Field(ge=1, le=1000)] = 3
    """Failures of a Redis server in a row, time-outs among them, after which it is not asked for a while."""

    redis_open_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """For how long it is not asked; everything that needs it is refused at once. Then one call tries it."""

    redis_wait_replicas: Annotated[int, Field(ge=0, le=16)] = 0
    """Redis replicas that must have a commit before it is acknowledged; see docs/operate.md."""

    session_idle_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 1800
    """Idle time after which a session ends: what is stored of it goes to the outcomes, as one that did not buy."""

    outcome_grace_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 3600
    """For how long the events of a session that has ended stay, if no replica is there to note its outcome."""

    close_every_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """How often a replica looks for sessions that have ended."""

    outcomes_kept: Annotated[int, Field(ge=0, le=1_000_000)] = 50_000
    """How many ended sessions wait in Redis to be collected (`willbuy collect`), about; older ones go. 0: none."""

    outcomes_kept_s: Annotated[int, Field(ge=60, le=365 * 86400)] = 7 * 86400
    """For how long they wait, about."""

    trust_window_s: Annotated[int, Field(ge=24, le=90 * 86400)] = 86400
    """How far back the figures go that say how well the model does on sessions that have ended."""

    drift_events_per_s: Annotated[float, Field(ge=0, le=100_000)] = 200.0
    """Events of ended sessions a second, on average, whose features a replica compares with the training data."""

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
    """Most events that are handled together."""

    max_queue: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Most events that may wait for a batch; more are refused at once (`overloaded`)."""

    max_rebuild_events: Annotated[int, Field(ge=1, le=10_000_000)] = 8192
    """Most events of histories that one batch folds again after a change of the model; sessions beyond it wait for the
    next batch, so that a release holds up nobody for long. A longer history is folded alone."""

    commit_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """How often an event is tried when other replicas commit to its session at the same time, before `conflict`."""

    request_timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    """Deadline of one request, from its first byte to its answer; past it the caller gets `deadline_exceeded`, and an
    event that was still waiting for a batch is not folded."""

    max_body_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 65536
    """Largest request body; a larger one is refused (`body_too_large`)."""

    max_batch_events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Most events of one request to `/v1/events/batch`; not more than `max_queue` in any case."""

    max_batch_body_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 4 * 2**20
    """Largest body of such a request."""

    board_cache_s: Annotated[float, Field(gt=0, le=10)] = 0.5
    """Age up to which an answer of the live board is given again to whoever asks the same."""

    stats_interval_s: Annotated[float, Field(gt=0, le=3)] = 1.0
    """How often a replica reports how it is doing, and the age up to which an answer of `/v1/stats` is given again."""

    stream_interval_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    """How often a stream looks for changes."""

    max_streams: Annotated[int, Field(ge=0, le=10_000)] = 256
    """Most streams that may be open at one replica; more are refused (`too_many_streams`)."""

    drain_delay_s: Annotated[float, Field(ge=0, le=300)] = 0.0
    """How long after SIGTERM events are still taken while `/readyz` answers 503: what balancers need to notice."""

    traces: Literal["auto", "on", "off"] = "auto"
    """Whether requests are traced by OpenTelemetry, which needs the extra `otel`; `auto`: when
    `OTEL_EXPORTER_OTLP_ENDPOINT` is set."""

    log_format: Literal["console", "json"] = "json"
    """`json`: one object a line, for log collectors. `console`: coloured, for people."""

    log_session_ids: Literal["full", "short", "hash"] = "hash"
    """How session ids stand in the log: whole, by their first characters, or by a hash that is the same each time."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is written."""

    @field_validator("redis_url")
    @classmethod
    def _supported_url(cls, value: SecretStr) -> SecretStr:
        parse_address(value.get_secret_value())
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _one_round_trip_fits_the_deadline(self) -> Self:
        if self.redis_timeout_s > self.request_timeout_s:
            raise ValueError("redis_timeout_s must not be larger than request_timeout_s")
        return self

    @property
    def masked_redis_url(self) -> str:
        """The Redis URL without its password and options, fit for logs."""
        return masked_url(self.redis_url.get_secret_value())
