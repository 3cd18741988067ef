"""A mistake in the configuration is one line that names the setting, from the command and from the factory."""

import json
import socket
from contextlib import contextmanager

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.cli import cli, complete_cli, readable
from app.main import StartupError, create_app

TLS = "rediss://127.0.0.1:1/0"


@pytest.fixture
def junk(tmp_path):
    path = tmp_path / "junk"
    path.write_bytes(b"\xff\xfejunk")
    return path


@contextmanager
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def faulty_settings(name, artifact, junk, tmp_path):
    """Return the setting that the message has to name, and the settings."""
    files = {
        "missing": tmp_path / "missing",
        "junk": junk,
        "folder": tmp_path,
        "below a file": junk / "file",
        "name too long": tmp_path / ("n" * 300),
    }
    setting, _, kind = name.partition(": ")
    settings = {
        "ARTIFACT": str(artifact),
        "OPEN_ACCESS": "true",
        "REDIS_URL": TLS,
        setting: str(files[kind]),
    }
    if setting == "API_KEYS_FILE":
        settings["OPEN_ACCESS"] = "false"
    if setting == "REDIS_KEY_FILE":
        settings["REDIS_CERT_FILE"] = str(junk)
        return "REDIS_CERT_FILE" if kind == "junk" else "REDIS_", settings
    return setting, settings


KINDS = ("missing", "junk", "folder", "below a file", "name too long")
FAULTS = [
    f"{setting}: {kind}"
    for setting in ("ARTIFACT", "API_KEYS_FILE", "REDIS_CA_FILE", "REDIS_CERT_FILE", "REDIS_KEY_FILE")
    for kind in KINDS
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_used_is_one_line_with_its_setting(fault, artifact, junk, tmp_path, monkeypatch):
    setting, settings = faulty_settings(fault, artifact, junk, tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(f"WILLBUY_{name}", value)
    run = CliRunner().invoke(cli, ["serve", "--port", "0"])
    assert run.exit_code == 1
    assert isinstance(run.exception, SystemExit)
    with pytest.raises(StartupError) as raised:
        create_app()
    # In the log's form, for those who collect it
    for line in (run.output.strip(), str(raised.value)):
        assert len(line.splitlines()) == 1
        told = json.loads(line)
        assert (told["event"], told["level"]) == ("start_failed", "error")
        assert f"WILLBUY_{setting}" in told["detail"]


def test_a_terminal_gets_text(monkeypatch):
    monkeypatch.setattr("app.monitoring.logging.writes_text", lambda: True)
    monkeypatch.setenv("WILLBUY_MAX_QUEUE", "many")
    run = CliRunner().invoke(cli, ["serve"])
    assert run.exit_code == 1
    assert "error: WILLBUY_MAX_QUEUE: " in run.output
    with pytest.raises(StartupError, match=r"^willbuy cannot start: WILLBUY_"):
        create_app()


@pytest.mark.parametrize("command", [(), ("serve",), ("key",), ("key", "new"), ("train",), ("collect",)], ids=" ".join)
def test_help_has_a_short_name(command):
    complete = complete_cli()
    short, long = (CliRunner().invoke(complete, [*command, name]) for name in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output == long.output


@pytest.mark.parametrize("command", ["serve", "train", "evaluate", "webhooks"])
def test_help_shows_arguments_without_braces_and_flags_without_a_type(command, capsys):
    with pytest.raises(SystemExit):
        readable(get_command(complete_cli()))([command, "-h"])
    told = capsys.readouterr().out
    assert "Usage:" in told
    assert [sign for sign in ("{", "<bool>") if sign in told] == []


@pytest.mark.parametrize("sha256", ["0" * 64])
def test_an_artifact_of_another_digest_is_named(sha256, artifact, monkeypatch):
    monkeypatch.setenv("WILLBUY_OPEN_ACCESS", "true")
    monkeypatch.setenv("WILLBUY_ARTIFACT_SHA256", sha256)
    run = CliRunner().invoke(cli, ["serve", "--artifact", str(artifact), "--redis-url", TLS])
    assert run.exit_code == 1
    assert "SHA-256" in run.output


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (("--port", "{taken}"), "--port"),
        (("--port", "{taken}", "--workers", "2"), "--port"),
        (("--host", "203.0.113.7"), "--host"),
        (("--host", "no-such-host.invalid"), "--host"),
        (("--host", "n" * 80 + ".invalid"), "--host"),
        (("--uds", "{folder}/no/s"), "--uds"),
        (("--uds", "{folder}/file"), "--uds"),
        (("--uds", "{folder}/" + "s" * 120), "--uds"),
        (("--uds", "{folder}/live"), "--uds"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_line_with_its_option(
    options, option, artifact, monkeypatch, tmp_path
):
    monkeypatch.setenv("WILLBUY_ARTIFACT", str(artifact))
    monkeypatch.setenv("WILLBUY_OPEN_ACCESS", "true")
    monkeypatch.setenv("WILLBUY_REDIS_URL", "redis://127.0.0.1:1/0")
    (tmp_path / "file").write_text("kept")
    with taken_port() as port, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "live"))
        other.listen()
        words = [word.replace("{taken}", str(port)).replace("{folder}", str(tmp_path)) for word in options]
        run = CliRunner().invoke(cli, ["serve", *words])
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "live").is_socket()
    assert run.exit_code == 1
    assert option in run.output
    assert len(run.output.strip().splitlines()) == 1
