"""The file of rules: in use from the start, read again when it changes, refused with the old one staying."""

import io
import json

import httpx
import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.interventions.rule_file import RuleFile
from app.main import StartupError, create_app
from app.monitoring.logging import build_logger
from app.settings import Settings
from model.interventions.rules import RulesError

pytestmark = pytest.mark.anyio
NOW_MS = 1_795_342_600_000
VOUCHER = '[[rules]]\nname = "voucher"\n'


class Bench:
    def __init__(self, path, text):
        self.path, self.model, self.now_ms = path, FakeModel(), NOW_MS
        self.log = io.StringIO()
        path.write_text(text)
        settings = Settings(artifact="unused.pt", interventions_file=path, session_idle_s=1800)
        logger = build_logger(log_level="info", stream=self.log)
        self.file = RuleFile(settings, model=lambda: self.model, now_ms=lambda: self.now_ms, logger=logger)
        self.changes = 0
        self.file.on_change(self._changed)

    def _changed(self):
        self.changes += 1

    async def write(self, text):
        self.path.write_text(text)
        await self.check()

    async def check(self):
        # A file that changed may still be written to, so it is read at the second look
        await self.file.check()
        await self.file.check()

    def logged(self):
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path / "rules.toml", VOUCHER)
    await bench.check()
    return bench


async def test_another_file_is_in_use_once_it_has_settled(bench):
    assert bench.file.rules.names == ("voucher",)
    await bench.write(VOUCHER + '[[rules]]\nname = "chat"\n')
    assert bench.file.rules.names == ("voucher", "chat")
    assert bench.changes == 1
    await bench.write("")
    assert bench.file.decider is None
    assert [line["event"] for line in bench.logged()] == ["interventions_read", "interventions_read"]


async def test_a_bad_file_is_refused_and_the_old_rules_stay(bench):
    before = bench.file.decider
    await bench.write(VOUCHER + "control = 2\n")
    assert bench.file.decider is before
    bench.path.unlink()
    await bench.check()
    assert bench.file.decider is before
    refused, gone = bench.logged()
    assert refused["event"] == gone["event"] == "interventions_refused"
    assert refused["faults"] == [f"{bench.path}: rule 'voucher': control: expected a share from 0 to 1"]
    assert refused["kept"] == ["voucher"]
    assert gone["faults"] == [f"{bench.path}: No such file or directory"]


async def test_a_bad_webhook_refuses_the_file(bench):
    await bench.write(VOUCHER + '[[webhooks]]\nurl = "https://shop.example/hook"\n')
    (line,) = bench.logged()
    assert line["event"] == "interventions_refused"
    assert str(bench.path) in line["faults"][0]
    assert "secret" in line["faults"][0]


async def test_names_of_events_are_read_as_the_loaded_model_reads_them(bench):
    await bench.write(VOUCHER + 'events = ["view item"]\n')
    assert bench.file.rules.rules[0].events == ["view_item"]

    class Renaming(FakeModel):
        def canonical_name(self, event_name):
            return "own_view" if event_name == "view item" else super().canonical_name(event_name)

    bench.model = Renaming("b")
    await bench.file.check()
    assert bench.file.rules.rules[0].events == ["own_view"]


async def test_a_clock_that_goes_back_is_told_with_the_fields_that_depend_on_it(bench):
    await bench.write(VOUCHER + "ends = 2027-01-01T00:00:00Z\n")
    bench.now_ms -= 500
    await bench.file.check()
    assert len(bench.logged()) == 1
    bench.now_ms -= 60_000
    await bench.file.check()
    await bench.file.check()
    (line,) = bench.logged()[1:]
    assert line["event"] == "interventions_clock_went_back"
    assert line["faults"] == [f"{bench.path}: rule 'voucher': ends: the server's clock went back by 60.5 s"]


def test_at_the_start_a_bad_file_is_one_line_that_names_setting_file_rule_and_field(tmp_path):
    path = tmp_path / "rules.toml"
    with pytest.raises(RulesError):
        Bench(path, VOUCHER + "control = 2\n")
    settings = Settings(artifact="unused.pt", open_access=True, interventions_file=path)
    with pytest.raises(StartupError) as caught:
        create_app(settings, model=FakeModel())
    expected = f"WILLBUY_INTERVENTIONS_FILE: {path}: rule 'voucher': control: expected a share from 0 to 1"
    assert expected in str(caught.value)


async def test_answers_batches_retries_and_traces_have_the_decisions(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[rules]]\nname = "voucher"\nevents = ["view_cart"]\nmin_events = 2\n'
        '[[rules]]\nname = "held"\ncontrol = 1.0\n'
        '[[rules]]\nname = "open"\ncontrol = 1.0\ntell_control = true\n'
    )
    settings = Settings(artifact="unused.pt", open_access=True, interventions_file=path)
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    app = create_app(settings, model=FakeModel(), store=store, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            one = {"session_id": "s", "event_name": "view_item", "event_id": "1", "visitor_id": "v"}
            two = {"session_id": "s", "event_name": "view_cart", "event_id": "2"}
            first = (await client.post("/v1/events", json=one)).json()
            batch = (await client.post("/v1/events/batch", json=[two, two])).json()
            traced = (await client.get("/v1/sessions/s?trace=true")).json()
    second, again = (item["score"] for item in batch["results"])
    assert first["interventions"] == [{"name": "open", "group": "control", "probability": first["probability"]}]
    voucher = {"name": "voucher", "group": "treatment", "probability": second["probability"]}
    assert second["interventions"] == again["interventions"] == [voucher]
    assert again["duplicate"]
    # The record has the decision that no answer contains
    points = [[one["name"] for one in point["interventions"]] for point in traced["trace"]]
    assert points == [["held", "open"], ["voucher"]]
    assert traced["trace"][1]["interventions"] == [voucher | {"decided": "2026-11-22T10:16:40Z", "idle": False}]
