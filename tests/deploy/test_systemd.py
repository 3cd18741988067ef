"""The systemd unit: its command line, settings and times are the service's, and systemd reads it."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from conftest import missing
from support.deployment import ROOT, SETTINGS, environment_of_settings
from typer.main import get_command

from app.cli import cli
from app.settings import Settings

UNIT = ROOT / "deploy/systemd/willbuy.service"
ENVIRONMENT = ROOT / "deploy/systemd/willbuy.env"
PAGE = (ROOT / "docs/one-machine.md").read_text()


def value(name: str) -> str:
    [found] = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


def test_its_command_line_is_one_of_the_service() -> None:
    program, command, *options = shlex.split(value("ExecStart"))
    assert (Path(program).name, command) == ("willbuy", "serve")
    serve = get_command(cli).commands["serve"]  # type: ignore[attr-defined]  # typer's group
    parsed = serve.make_context("serve", options).params
    assert (parsed["host"], parsed["port"]) == ("127.0.0.1", 8000)


def test_it_waits_for_the_drain_and_sends_the_signal_to_the_parent_alone() -> None:
    drain_s, request_s = (Settings.model_fields[name].default for name in ("drain_delay_s", "request_timeout_s"))
    assert float(value("TimeoutStopSec")) >= drain_s + request_s + 10
    assert value("KillMode") == "mixed"


def test_its_environment_has_settings_of_the_service_and_files_that_the_page_makes() -> None:
    lines = dict(
        line.split("=", 1) for line in ENVIRONMENT.read_text().splitlines() if line and not line.startswith("#")
    )
    assert set(lines) <= SETTINGS
    assert environment_of_settings(UNIT.read_text()) <= SETTINGS
    assert value("EnvironmentFile") in PAGE
    for path in (lines["WILLBUY_ARTIFACT"], lines["WILLBUY_API_KEYS_FILE"], value("ExecStart").split()[0]):
        assert path in PAGE
    assert re.search(rf"useradd .* {value('User')}$", PAGE, re.MULTILINE)


def test_systemd_reads_it(tmp_path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        raise missing("systemd-analyze")
    unit = tmp_path / UNIT.name
    # The program is not installed here
    unit.write_text(UNIT.read_text().replace("/opt/willbuy/bin/willbuy", "/bin/true"))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
