"""Lines of the log: what each carries, what none shows, and what the server's own look like."""

import asyncio
import io
import json
import subprocess
import sys

import httpx
import pytest
from support.memory_store import MemoryStore

from app.errors import CorruptRecordError
from app.main import create_app
from app.monitoring.logging import REQUEST_ID, build_logger, server_log_config
from app.settings import Settings

# Put together, or it would stand in the line of code that a traceback shows.
SECRET = "hunter" + str(2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def written(stream=None, **options):
    stream = stream or io.StringIO()
    return build_logger(log_level="info", stream=stream, **options), stream


def fail(secret):
    raise RuntimeError(f"a defect of {len(secret)} letters")


def test_a_line_is_one_json_object_with_time_and_level():
    logger, stream = written()
    logger.warning("something", size=3)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "something", "level": "warning", "size": 3}


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_traceback_shows_where_and_no_values(stream):
    logger, stream = written(stream())
    try:
        fail(SECRET)
    except RuntimeError:
        logger.exception("failed")
    assert "a defect of 7 letters" in stream.getvalue()
    assert "fail" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_lines_of_requests_that_are_served_at_once_carry_each_its_own_name():
    logger, stream = written()

    async def serve(name):
        REQUEST_ID.set(name.encode())
        await asyncio.sleep(0)
        logger.info("one", of=name)
        await asyncio.to_thread(logger.info, "two", of=name)

    async def main():
        await asyncio.gather(*(serve(f"r-{number}") for number in range(5)))
        logger.info("outside")

    asyncio.run(main())
    *lines, outside = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 10
    assert all(line["request_id"] == line["of"] for line in lines)
    assert "request_id" not in outside


class Damaged(MemoryStore):
    async def load(self, session_ids):
        return [CorruptRecordError("damaged") for _ in session_ids]


@pytest.mark.anyio
async def test_the_line_of_a_request_that_failed_carries_the_name_that_its_caller_got(artifact, capfd):
    settings = Settings(artifact=artifact, open_access=True)
    app = create_app(settings, store=Damaged(session_idle_s=1800, now_ms=lambda: 0))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://willbuy")
    async with app.router.lifespan_context(app), client:
        answer = await client.post("/v1/events", json={"session_id": "s-1", "event_name": "page_view"})
    assert answer.status_code == 500
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (failed,) = [line for line in lines if line["event"] == "request_failed"]
    assert failed["request_id"] == answer.headers["x-request-id"]


def test_what_is_known_elsewhere_is_added():
    logger, stream = written(fields=[lambda _logger, _method, event: event | {"trace_id": "abc"}])
    logger.info("something")
    assert json.loads(stream.getvalue())["trace_id"] == "abc"


OTHERS = """
import logging, logging.config, sys, warnings
from app.monitoring.logging import server_log_config
sys.stderr.isatty = lambda: sys.argv[1] == "terminal"
logging.config.dictConfig(server_log_config())
logging.getLogger("uvicorn.error").info("Child process [7] died")
logging.getLogger("uvicorn.access").info("GET /v1/sessions/s-1")
logging.getLogger("some.library").info("chatter")
warnings.warn("old")
try:
    secret = "hunter2"
    raise RuntimeError("a defect")
except RuntimeError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
"""


def others(where):
    command = [sys.executable, "-c", OTHERS, where]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_lines_of_the_server_and_of_libraries_have_the_same_form():
    died, warning, defect = [json.loads(line) for line in others("file").splitlines()]
    assert died["event"] == "Child process [7] died"
    assert (died["level"], died["logger"]) == ("info", "uvicorn.error")
    assert "old" in warning["event"]
    assert defect["exception"][0]["exc_value"] == "a defect"
    assert "hunter2" not in json.dumps(defect)


def test_people_at_a_terminal_see_only_what_goes_wrong():
    shown = others("terminal")
    assert "died" not in shown
    assert "a defect" in shown


def test_the_servers_configuration_can_be_given_to_worker_processes():
    assert json.loads(json.dumps(server_log_config())) == server_log_config()
