"""Every setting of the service, read once from the environment and then constant.

Each is an environment variable: `WILLBUY_` and the field's name in capitals. The docstrings are the text of
`docs/reference/settings.md`.
"""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from structlog.typing import FilteringBoundLogger

from model.redis_keys import DEFAULT_KEY_PREFIX, check_key_prefix
from model.redis_url import mask_redis_url, parse_redis_url

ENV_PREFIX: Final = "WILLBUY_"
REMOVED_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "WILLBUY_ALLOW_RELOAD": "a reload needs an API key with the scope model:admin",
        "WILLBUY_API_KEYS": "use WILLBUY_API_KEYS_FILE",
        "WILLBUY_BOARD_CACHE_S": "constant: 0.5",
        "WILLBUY_CLOSE_EVERY_S": "a tenth of WILLBUY_SESSION_IDLE_S, 0.1 to 5",
        "WILLBUY_COMMIT_ATTEMPTS": "constant: 8",
        "WILLBUY_DEVICE": "the faster device is chosen; CUDA_VISIBLE_DEVICES= hides the GPUs",
        "WILLBUY_DRIFT_EVENTS_PER_S": "constant: 200",
        "WILLBUY_LOG_FORMAT": "text on a terminal, JSON elsewhere",
        "WILLBUY_MAX_BATCH_BODY_BYTES": "WILLBUY_MAX_BATCH_EVENTS x 64 KiB, at most 4 MiB",
        "WILLBUY_MAX_BATCH_SIZE": "constant: 256",
        "WILLBUY_MAX_BODY_BYTES": "constant: 65536",
        "WILLBUY_MAX_EVENT_AHEAD_S": "constant: 300",
        "WILLBUY_MAX_HEAD_BYTES": "constant: 16384",
        "WILLBUY_MAX_REBUILD_EVENTS": "constant: 8192",
        "WILLBUY_MAX_STREAMS": "constant: 256",
        "WILLBUY_OUTCOMES_KEPT_S": "constant: 604800",
        "WILLBUY_REDIS_FAILURES_TO_OPEN": "constant: 3",
        "WILLBUY_REDIS_MAX_CONNECTIONS": "constant: 16",
        "WILLBUY_REDIS_OPEN_S": "constant: 1",
        "WILLBUY_REDIS_SENTINEL_PASSWORD": "use ?sentinel_password= in WILLBUY_REDIS_URL",  # nosec B105 - a hint, no password
        "WILLBUY_REDIS_SENTINEL_USERNAME": "use ?sentinel_username= in WILLBUY_REDIS_URL",
        "WILLBUY_STATS_INTERVAL_S": "constant: 1",
        "WILLBUY_STREAM_INTERVAL_S": "constant: 1",
        "WILLBUY_TRACES": "OTEL_EXPORTER_OTLP_ENDPOINT turns traces on, OTEL_SDK_DISABLED=true turns them off",
    }
)
"""Variables of earlier releases, each with what holds now. One that is set is a warning in the log."""

# Read by the client, by Compose and by tests.
_OTHER_VARIABLES: Final = frozenset(
    f"{ENV_PREFIX}{name}" for name in ("API_KEY", "URL", "VERSION", "DATASETS", "FUZZ_CASES")
)
# Kubernetes sets these for each service in the namespace, such as `willbuy` and `willbuy-redis`.
_OF_KUBERNETES: Final = re.compile(r"_(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_\w+)?)$")

# A record numbers its answers with one byte (app/store/record_codec.py).
LARGEST_DEDUPE_WINDOW = 255
# A sweep asks all 256 shards of Redis; a session lasts minutes, so an outcome may be five seconds late.
_SLOWEST_SWEEP_S: Final = 5.0
# Bounds the load of tests and demos with idle times of seconds.
_FASTEST_SWEEP_S: Final = 0.1
# Room for 1000 events of 4 KiB; bounds memory and how long one parse holds up the event loop.
_LARGEST_BATCH_BODY: Final = 4 * 2**20
# Scheme, host and port, as browsers send `Origin`. `*` is refused: with it, every page could call the API.
_ORIGIN = r"^https?://[A-Za-z0-9.-]+(:[0-9]+)?$"


class Settings(BaseSettings):
    """The choices of an operator. Frozen; an invalid value stops the start."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # A refused value may be a URL with a password.
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    # Limits that no shop changes: attributes of the class, not settings.
    max_batch_size: ClassVar[int] = 256
    """Most events of one micro-batch; the cost of an event hardly falls beyond."""
    max_body_bytes: ClassVar[int] = 65536
    """Largest request body; an event has some hundred bytes."""
    max_event_ahead_s: ClassVar[int] = 300
    """How far a timestamp may be ahead of the server's clock; a clock that is set by the network is off by less."""
    max_streams: ClassVar[int] = 256
    """Most open streams of one process."""
    outcomes_kept_s: ClassVar[int] = 7 * 86400
    """About how long Redis keeps ended sessions for `willbuy collect`."""

    artifact: Path
    """The model: the file that `willbuy train` writes."""

    artifact_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Required SHA-256 of this file, in hexadecimal. Set it where the file comes over a network: loading an
    artifact runs the code in it."""

    watch_artifact_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Interval at which the service checks the path for another file and loads it (docs/upgrade.md#4-release);
    0: never."""

    shadow_artifact: Path | None = None
    """A candidate that scores some sessions beside the model; only metrics show it."""

    shadow_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of sessions that the candidate scores, 0 to 1; the same sessions on every replica."""

    state_dtype: Literal["float16", "float32"] = "float16"
    """Stored type of a session's hidden state. `float16`: small records, answers within 2e-3 of the offline
    model. `float32`: within 1e-5. Change it at any time: records of the other type are rebuilt from their
    histories."""

    base_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of sessions that buy in the live shop, between 0 and 1, if it differs from the training log's. All
    probabilities are shifted to it (docs/base-rate.md). None: as trained."""

    api_keys_file: Path | None = None
    """TOML file of accepted API keys (`willbuy key new` writes it), read again within two seconds of a change."""

    interventions_file: Path | None = None
    """TOML file of rules that act on scores, and of webhooks (docs/act-on-a-score.md), read again within two seconds
    of a change. None: no rules."""

    open_access: bool = False
    """Everybody may do everything without a key. For trials; each start logs a warning. Without open access and
    without keys, the service does not start."""

    key_events_per_s: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """Rate limit of a key without its own: events and other requests a second (429 `rate_limited`), averaged
    over ten seconds and all replicas; 0: none."""

    metrics_public: bool = True
    """Whether `/metrics` needs no key; otherwise it needs `sessions:read`."""

    cors_origins: Annotated[tuple[Annotated[str, Field(pattern=_ORIGIN)], ...], NoDecode] = ()
    """Origins whose pages may call the API, separated by commas (`https://desk.example`). None: no answer has a
    CORS header."""

    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """The Redis that holds all sessions, with user and password, in one of the forms of docs/operate.md#which-redis.
    Redis 6.2 or later, or Valkey. Without this variable `willbuy serve` starts an embedded server, whose data ends with
    it, and `willbuy collect` of the same user reads from that one; only other ways to start take the default."""

    redis_key_prefix: str = DEFAULT_KEY_PREFIX
    """Beginning of every key, so that services share a Redis (docs/operate.md#which-redis): 1 to 64 printable
    ASCII characters without blanks, braces, `*`, `?`, `[`, `]`, `\\`, `^`. With another prefix, the sessions of
    before are not found."""

    redis_ca_file: Path | None = None
    """Certificates that TLS to Redis trusts, in PEM; none: the system's."""

    redis_cert_file: Path | None = None
    """The service's own certificate for TLS to Redis, in PEM, where Redis asks clients for one
    (`tls-auth-clients`)."""

    redis_key_file: Path | None = None
    """Private key of that certificate, in PEM, without a passphrase; none: it is in `WILLBUY_REDIS_CERT_FILE`."""

    redis_timeout_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Longest wait for one answer of Redis, including connecting and waiting for a free connection. At most
    `WILLBUY_REQUEST_TIMEOUT_S`."""

    redis_wait_replicas: Annotated[int, Field(ge=0, le=16)] = 0
    """Redis replicas that must have a commit before it is acknowledged (possible losses,
    docs/operate.md#what-redis-itself-may-lose)."""

    session_idle_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 1800
    """Idle time after which a session ends, without a purchase, and becomes an outcome (docs/outcomes.md)."""

    after_purchase: Literal["ignore", "restart"] = "ignore"
    """What comes after a purchase under the same session id. `ignore`: nothing of it counts, until the idle time has
    passed. `restart`: the next event that is no purchase begins a new visit; give `willbuy prepare` the same choice."""

    outcome_grace_s: Annotated[int, Field(ge=1, le=30 * 86400)] = 3600
    """How long an ended session's events stay while no replica records its outcome. After that, the outcome is
    lost and counted."""

    max_session_events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Most events of one session (409 `session_full`). The bound keeps every history complete, so that a state
    can be rebuilt."""

    max_session_bytes: Annotated[int, Field(ge=1024, le=64 * 2**20)] = 4 * 2**20
    """Largest size of one session's events as Redis stores them. An event that would exceed it is refused (409
    `session_too_large`). The bound limits memory, rebuilds and sweeps."""

    dedupe_window: Annotated[int, Field(ge=1, le=LARGEST_DEDUPE_WINDOW)] = 64
    """Number of a session's last events whose answers are stored, at most 255. A repeated `event_id` among them
    gets the stored answer; an older one would count again."""

    allow_placeholder_ids: bool = False
    """Whether a session or event id may be `undefined`, `null`, blank or the like. Broken tags send these for
    all visitors, who would share one session."""

    max_event_age_s: Annotated[int, Field(ge=1)] = 86400
    """Largest age of an event's timestamp; older events are refused (422)."""

    max_queue: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Most events that wait for a micro-batch; more are refused at once (503 `overloaded`)."""

    request_timeout_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    """Deadline of a request, from its first byte to its answer (503 `deadline_exceeded`). An event whose commit
    had begun may be stored: send it again with the same `event_id`."""

    max_batch_events: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Most events of one `POST /v1/events/batch` (413 `too_many_events`), at most `WILLBUY_MAX_QUEUE`. Of one
    session, at most `WILLBUY_DEDUPE_WINDOW`, so that a request can safely be sent again."""

    outcomes_kept: Annotated[int, Field(ge=0, le=1_000_000)] = 50_000
    """About how many ended sessions Redis keeps for `willbuy collect`, at most a week; the oldest go first.
    0: none; model quality needs none."""

    trust_window_s: Annotated[int, Field(ge=24, le=90 * 86400)] = 86400
    """Window of the outcomes and model quality figures (docs/quality.md#which-sessions-count)."""

    drain_delay_s: Annotated[float, Field(ge=0, le=300)] = 0.0
    """How long after SIGTERM events are accepted while `/readyz` answers 503: the time that load balancers need
    (docs/operate.md#stopping)."""

    log_session_ids: Literal["full", "short", "hash"] = "hash"
    """Form of session ids in the log: `full`, `short` (the first four characters) or `hash` (twelve hexadecimal
    digits, always the same for the same id)."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged: `debug`, `info`, `warning` or `error`."""

    @field_validator("redis_url")
    @classmethod
    def _supported_url(cls, value: SecretStr) -> SecretStr:
        parse_redis_url(value.get_secret_value())
        return value

    @field_validator("redis_key_prefix")
    @classmethod
    def _supported_prefix(cls, value: str) -> str:
        return check_key_prefix(value)

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
        """The Redis URL without passwords and options, fit for logs."""
        return mask_redis_url(self.redis_url.get_secret_value())

    @property
    def sweep_every_s(self) -> float:
        """Interval at which a replica looks for sessions that have ended."""
        return max(_FASTEST_SWEEP_S, min(_SLOWEST_SWEEP_S, self.session_idle_s / 10))

    @property
    def max_batch_body_bytes(self) -> int:
        """Largest body of one request to `/v1/events/batch`."""
        return min(_LARGEST_BATCH_BODY, self.max_batch_events * self.max_body_bytes)


def faults_of(error: ValidationError) -> list[str]:
    """Return one line for each invalid setting, with the name of its variable and without its value."""
    return [
        "".join(f"{ENV_PREFIX}{str(part).upper()}: " for part in fault["loc"][:1])
        + fault["msg"].removeprefix("Value error, ")
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def removed_settings() -> dict[str, str]:
    """Return the variables of earlier releases that are set, each with what holds now."""
    return {name: hint for name, hint in REMOVED_SETTINGS.items() if name in os.environ}


def unknown_settings() -> dict[str, str]:
    """Return the variables that are set and are no setting's, each with a hint; never a value."""
    known = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    others = {*known, *REMOVED_SETTINGS, *_OTHER_VARIABLES}
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in others and not _OF_KUBERNETES.search(name)
    )
    near = {name: get_close_matches(name.upper(), known, n=1, cutoff=0.8) for name in unknown}
    return {name: f"did you mean {found[0]}?" if found else "no such setting" for name, found in near.items()}


def warn_of_ignored_settings(logger: FilteringBoundLogger) -> None:
    """Log one warning each for variables of earlier releases, and for names that are no setting's."""
    if removed := removed_settings():
        logger.warning("settings_removed", ignored=removed)
    if unknown := unknown_settings():
        logger.warning("settings_unknown", ignored=unknown)
