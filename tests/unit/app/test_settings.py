import json

import pytest
from pydantic import ValidationError

from app.main import StartupError, create_app
from app.settings import REMOVED_SETTINGS, Settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WILLBUY_{name.upper()}", raising=False)


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("WILLBUY_ARTIFACT", str(tmp_path / "model.pt"))
    monkeypatch.setenv("WILLBUY_MAX_QUEUE", "7")
    settings = Settings()
    assert settings.artifact == tmp_path / "model.pt"
    assert settings.max_queue == 7


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        setattr(Settings(artifact="model.pt"), "max_queue", 7)  # noqa: B010 - mypy knows that it is frozen


@pytest.mark.parametrize(
    "url", ["redis://cache:6379/0", "rediss://user:secret@cache:6380/2", "unix:///run/redis.sock", "redis://cache"]
)
def test_supported_redis_urls(url):
    assert Settings(artifact="model.pt", redis_url=url).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url", ["http://cache", "cache:6379", "redis://", "unix://", "redis://cache/one", "redis://cache:port", ""]
)
def test_other_urls_are_refused(url):
    with pytest.raises(ValidationError, match="redis_url"):
        Settings(artifact="model.pt", redis_url=url)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://user:secret@cache:6379/1", "redis://user:***@cache:6379/1"),
        ("redis://:secret@cache", "redis://:***@cache"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("unix://:secret@/run/redis.sock?db=1", "unix://:***@/run/redis.sock"),
    ],
)
def test_the_password_is_masked(url, masked):
    settings = Settings(artifact="model.pt", redis_url=url)
    assert settings.masked_redis_url == masked
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("prefix", ["wb:", "a", "Shop-7/eu#", "x" * 64])
def test_supported_key_prefixes(prefix):
    assert Settings(artifact="model.pt", redis_key_prefix=prefix).redis_key_prefix == prefix


@pytest.mark.parametrize(
    "prefix", ["", "x" * 65, "a b", "a\n", "a\x00", "ä:", "{a}:", "a}", "a*", "a?", "[a]", "a\\", "^a", " wb:"]
)
def test_other_key_prefixes_are_refused(prefix):
    with pytest.raises(ValidationError, match="redis_key_prefix"):
        Settings(artifact="model.pt", redis_key_prefix=prefix)


def test_a_refused_url_is_not_echoed():
    with pytest.raises(ValidationError) as caught:
        Settings(artifact="model.pt", redis_url="http://user:secret@cache")
    assert "secret" not in str(caught.value)


def test_a_round_trip_longer_than_the_deadline_is_refused():
    with pytest.raises(ValidationError, match="redis_timeout_s must not be larger than request_timeout_s"):
        Settings(artifact="model.pt", redis_timeout_s=3, request_timeout_s=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_QUEUE", "many"),
        ("MAX_QUEUE", "0"),
        ("DEDUPE_WINDOW", "256"),
        ("STATE_DTYPE", "float64"),
        ("ARTIFACT_SHA256", "abc"),
        ("SESSION_IDLE_S", "-1"),
        ("BASE_RATE", "0"),
        ("BASE_RATE", "1.0"),
        ("BASE_RATE", "2 %"),
    ],
)
def test_a_bad_variable_is_one_line_that_names_it(monkeypatch, name, value):
    monkeypatch.setenv("WILLBUY_ARTIFACT", "model.pt")
    monkeypatch.setenv(f"WILLBUY_{name}", value)
    with pytest.raises(StartupError) as caught:
        create_app()
    assert f"WILLBUY_{name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_pair_of_variables_is_one_line_too(monkeypatch):
    monkeypatch.setenv("WILLBUY_ARTIFACT", "model.pt")
    monkeypatch.setenv("WILLBUY_REDIS_TIMEOUT_S", "3")
    with pytest.raises(StartupError) as caught:
        create_app()
    assert json.loads(str(caught.value))["detail"] == "redis_timeout_s must not be larger than request_timeout_s"


def test_a_variable_of_an_earlier_release_is_named_in_one_warning_and_its_value_is_not(artifact, monkeypatch, capsys):
    monkeypatch.setenv("WILLBUY_REDIS_SENTINEL_PASSWORD", "hidden")
    monkeypatch.setenv("WILLBUY_TRACES", "off")
    create_app(Settings(artifact=artifact, open_access=True))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "settings_removed" in line]
    assert '"level": "warning"' in line
    assert "WILLBUY_REDIS_SENTINEL_PASSWORD" in line
    assert "WILLBUY_TRACES" in line
    assert "WILLBUY_API_KEYS" not in line
    assert "hidden" not in line


def test_the_hints_of_removed_limits_are_their_values():
    limits = {name: getattr(Settings, name) for name in Settings.__class_vars__ if name.startswith("max_")}
    hints = {name: REMOVED_SETTINGS[f"WILLBUY_{name.upper()}"] for name in limits}
    assert hints == {name: f"constant: {value}" for name, value in limits.items()}
    assert limits["max_body_bytes"] == 65536


def test_names_that_are_no_settings_are_named_and_their_values_are_not(artifact, monkeypatch, capsys):
    ours = {"SESION_IDLE_S": "9", "BANANA": "hidden"}
    others = ("WILLBUY_PORT", "WILLBUY_PORT_8000_TCP_ADDR", "WILLBUY_REDIS_SERVICE_HOST", "WILLBUY_API_KEY")
    for name, value in ours.items():
        monkeypatch.setenv(f"WILLBUY_{name}", value)
    for name in others:
        monkeypatch.setenv(name, "10.0.0.1")
    monkeypatch.setenv("WILLBUY_MAX_QUEUE", "7")
    create_app(Settings(artifact=artifact, open_access=True))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "settings_unknown" in line]
    assert json.loads(line)["ignored"] == {
        "WILLBUY_BANANA": "no such setting",
        "WILLBUY_SESION_IDLE_S": "did you mean WILLBUY_SESSION_IDLE_S?",
    }
    assert "hidden" not in line


def test_no_setting_is_called_removed():
    assert not REMOVED_SETTINGS.keys() & {f"WILLBUY_{name.upper()}" for name in Settings.model_fields}
    assert len(Settings.model_fields) <= 36


@pytest.mark.parametrize(("idle_s", "every_s"), [(1800, 5), (50, 5), (20, 2), (1, 0.1)])
def test_sweeps_are_as_frequent_as_sessions_are_short(idle_s, every_s):
    assert Settings(artifact="model.pt", session_idle_s=idle_s).sweep_every_s == every_s


@pytest.mark.parametrize(
    ("limits", "bound"),
    [
        ({}, 4 * 2**20),
        ({"max_batch_events": 10}, 10 * 65536),
        ({"max_batch_events": 100_000}, 4 * 2**20),
        ({"max_batch_events": 1}, 65536),
    ],
)
def test_a_batch_body_has_room_for_its_events_up_to_4_mib(limits, bound):
    assert Settings(artifact="model.pt", **limits).max_batch_body_bytes == bound


def test_without_an_artifact_the_variable_to_set_is_named():
    with pytest.raises(StartupError, match="WILLBUY_ARTIFACT"):
        create_app()


def test_a_base_rate_that_the_artifact_cannot_be_shifted_to_is_one_line(artifact):
    with pytest.raises(StartupError) as caught:
        create_app(Settings(artifact=artifact, base_rate=0.03))
    reason = json.loads(str(caught.value))["detail"]
    assert reason.startswith("WILLBUY_BASE_RATE: cannot shift to 0.03, since model ")
    assert "\n" not in str(caught.value)
