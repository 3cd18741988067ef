"""Requests made from the API's description, good and bad, against the real service with a real Valkey."""

import re
import subprocess
import sys

import pytest
from support.keys import make_key, write_keys
from support.service import Service

from fuzz.cases import CASES

pytestmark = pytest.mark.slow

KEY = make_key("events:write", "sessions:read", "model:admin")
# No case is to fail because the machine is slow.
PHASES = "examples,coverage,fuzzing" + (",stateful" if CASES else "")
NOT_CHECKED = (
    # A schema cannot say how old a timestamp may be, what a cursor means, or which characters are control characters.
    "positive_data_acceptance",
    # Events of a batch count each for itself, so a batch with a bad one is answered 200.
    "negative_data_rejection",
    # `DELETE /v1/sessions/a/outcome` erases the session `a/outcome`; the description knows it by another path.
    "unsupported_method",
    "allow_header_conformance",
)
# A stream has no end; tests/e2e/test_board.py reads some.
NOT_ASKED = "/v1/stream"


@pytest.fixture
def service(artifact, valkey, tmp_path):
    settings = {"artifact": artifact, "redis_url": valkey.url}
    settings["api_keys_file"] = write_keys(tmp_path / "keys.toml", KEY)
    service = Service(tmp_path / "service.log", settings)
    service.start()
    yield service
    service.stop()


def test_no_request_is_a_failure_and_every_answer_is_as_described(service, tmp_path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.base_url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {KEY.key}", "--exclude-path", NOT_ASKED]
    command += ["--exclude-checks", ",".join(NOT_CHECKED), "--phases", PHASES]
    command += ["--max-examples", str(CASES or 20), "--request-timeout", "120", "--no-color"]
    command += [] if CASES else ["--generation-deterministic", "--seed", "1"]
    # Away from the repository, where it would leave its reports and example database
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout[-600:])  # `make fuzz` shows it
    (made,) = re.findall(r"^  (\d+) generated", done.stdout, flags=re.MULTILINE)
    assert int(made) > 400
    # And nothing failed in a way that only the log tells
    assert service.tracebacks() == []
    assert "request_failed" not in service.output()
