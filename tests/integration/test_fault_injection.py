"""Whatever an event raises, at any call of the scorer, the codecs or the store, stays with that event.

Every function and method of these modules is made to raise for one of several sessions, before or after it has done
its work. The others of the same batch must be answered right, and nothing may be lost or counted twice.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
import httpx
import pytest
from support.fakes import FakeModel

from app.api import bodies, events
from app.main import create_app
from app.scoring import events as validation
from app.scoring import isolation, parsing, rebuilder, scorer, session_update
from app.settings import Settings
from app.store import history_codec, interface, keys, record_codec, sessions
from app.store.redis import scripts, server
from model import events as model_events
from model.events import Event
from model.interventions import decide

pytestmark = pytest.mark.anyio

MODULES = [
    bodies,
    decide,
    events,
    history_codec,
    interface,
    isolation,
    keys,
    model_events,
    parsing,
    rebuilder,
    record_codec,
    scorer,
    scripts,
    session_update,
    sessions,
    validation,
]
# These take a whole request of many events, of which nothing is stored when they fail.
OF_A_REQUEST = {
    "api.bodies.gunzip",
    "api.bodies.read_body",
    "api.bodies.read_body_in_time",
    "api.events._encoded",
    "api.events.log_failures",
    "api.events._submissions",
    "api.events.post_events",
    "scoring.parsing._all_fast",
    "scoring.parsing._elements",
    "scoring.parsing._lines",
    "scoring.parsing.parse_events",
}
# The first is of no event, and the others deal with a fault.
NO_PART_OF_THE_WAY = {
    "api.events.post_event",
    "api.events._is_encodable",
    "api.events._problem",
    "scoring.isolation.await_isolated",
}
NOW_MS = 1_795_342_600_000
CLEAN = [f"clean-{number}" for number in range(5)]


class Injected(Exception):  # noqa: N818 - no error of the service
    pass


def targets() -> Iterator[tuple[str, Any, str]]:
    """Each function and method of the modules: its name, where it is, and its name there."""
    for module in MODULES:
        short = module.__name__.removeprefix("app.")
        for name, found in vars(module).items():
            if getattr(found, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(found) or hasattr(found, "cache_info"):
                yield f"{short}.{name}", module, name
            elif inspect.isclass(found) and not issubclass(found, Exception):
                for method, function in vars(found).items():
                    if inspect.isfunction(function) and not method.startswith("__"):
                        yield f"{short}.{name}.{method}", found, method


TARGETS = {
    name: (where, attribute)
    for name, where, attribute in [
        *targets(),
        ("store.redis.server.Server.execute", server.Server, "execute"),
        ("hiredis.pack_command", hiredis, "pack_command"),
    ]
    if name not in NO_PART_OF_THE_WAY
}


def is_poisoned(*values: object) -> bool:
    """Whether the values are of the bad session alone, which alone has this word and so many events."""
    text = repr(values)
    return "poison" in text or "events=3," in text or "events=4," in text


def raising(original: Callable[..., Any], raised: list[object], *, after: bool) -> Callable[..., Any]:
    """The function, but for values of the bad session."""

    def check(*values: object) -> None:
        if is_poisoned(*values):
            raised.append(original)
            raise Injected("the inside of the service")

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        if not after:
            check(args, kwargs)
        result = await original(*args, **kwargs)
        if after:
            check(args, kwargs, result)
        return result

    def called(*args: Any, **kwargs: Any) -> Any:
        if not after:
            check(args, kwargs)
        result = original(*args, **kwargs)
        if after:
            check(args, kwargs, result)
        return result

    return awaited if inspect.iscoroutinefunction(original) else called


@contextmanager
def injected(target: str, *, after: bool) -> Iterator[list[object]]:
    where, attribute = TARGETS[target]
    original = getattr(where, attribute)
    # Also where other modules have imported it.
    modules = [module for name, module in sys.modules.items() if name.startswith(("app.", "model."))]
    also = [one for one in modules if getattr(one, attribute, None) is original] if inspect.ismodule(where) else []
    raised: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        for place in {id(place): place for place in [where, *also]}.values():
            patch.setattr(place, attribute, raising(original, raised, after=after))
        yield raised


@pytest.fixture(scope="module")
async def model():
    return FakeModel(poison="none of these")


@pytest.fixture(scope="module")
async def client(shared_valkey, model, tmp_path_factory):
    # A rule that fires at every event, so that its calls are on the way too
    rules = tmp_path_factory.mktemp("rules") / "rules.toml"
    rules.write_text('[[rules]]\nname = "r"\nrepeat = true\ncap_per_hour = 100000\n')
    settings = Settings(
        artifact="unused.pt",
        open_access=True,
        redis_url=shared_valkey.url,
        interventions_file=rules,
    )
    app = create_app(settings, model=model, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield client


def event_of(session: str, number: int) -> dict[str, Any]:
    return {
        "session_id": session,
        "event_id": f"{session}-{number}",
        "event_name": f"page_of_{session}",
        "timestamp": NOW_MS - 1000 + number,
        "item_id": f"item of {session}",
        "price": 1.5,
        "properties": {"device": f"of {session}"},
    }


async def one_by_one(client, sent):
    answers = await asyncio.gather(*[client.post("/v1/events", json=event) for event in sent])
    return [(answer.status_code, answer.json()) for answer in answers]


async def together(client, sent):
    response = await client.post("/v1/events/batch", json=sent)
    if response.status_code != 200:
        return [(response.status_code, response.json())] * len(sent)
    return [(item["status"], item.get("score") or item["problem"]) for item in response.json()["results"]]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("post", [one_by_one, together])
@pytest.mark.parametrize("target", sorted(TARGETS))
async def test_an_exception_stays_with_its_event(client, shared_valkey, model, target, post, after) -> None:
    shared_valkey.flush()
    lengths = dict.fromkeys(CLEAN, 1) | {"poison": 3}
    before = [event_of(name, number) for name, many in lengths.items() for number in range(many)]
    assert {status for status, _ in await together(client, before)} == {200}
    names = [*CLEAN[:3], "poison", *CLEAN[3:]]
    sent = [event_of(name, 10) for name in names]

    with injected(target, after=after) as raised:
        answers = dict(zip(names, await post(client, sent), strict=True))

    if raised and post is together and target in OF_A_REQUEST:
        assert {status for status, _ in answers.values()} == {500}
    else:
        for name in CLEAN:
            status, score = answers[name]
            assert status == 200, score
            assert (score["events"], score["duplicate"]) == (2, False)
            assert [one["name"] for one in score["interventions"]] == ["r"]
            assert score["probability"] == expected(model, name, lengths[name])
    status, problem = answers["poison"]
    assert status in {200, 400, 422, 500}
    assert "inside of the service" not in str(problem)
    assert "Traceback" not in str(problem)
    # A retry of each failed event counts once, and each other event counted once
    for name, (status, score) in zip(names, await post(client, sent), strict=True):
        assert status == 200, score
        assert score["events"] == lengths[name] + 1
        assert len(score["interventions"]) == 1
        assert score["probability"] == expected(model, name, lengths[name])
    # No history is longer than its record says
    read = (await client.get("/v1/sessions/poison?trace=true")).json()
    assert len(read["trace"]) == read["events"] == lengths["poison"] + 1
    # And each event has its decision once
    assert [len(point["interventions"]) for point in read["trace"]] == [1] * read["events"]


def expected(model: FakeModel, name: str, many: int) -> float:
    sent = [event_of(name, number) for number in [*range(many), 10]]
    return model.expected(
        [Event(one["event_name"], one["timestamp"], one["item_id"], None, one["price"]) for one in sent]
    )


def test_the_calls_that_matter_are_among_them() -> None:
    assert {
        "scoring.events.EventValidator.submission",
        "scoring.parsing.parse_event",
        "scoring.scorer.Scorer._needs_fold",
        "model.interventions.decide.Decider.at_event",
        "scoring.scorer.Scorer._fold",
        "scoring.scorer.Scorer._take_tokens",
        "scoring.session_update.SessionUpdate.commit",
        "store.history_codec.encode_event",
        "store.history_codec.properties_code",
        "store.interface.Commit.entries",
        "store.keys.shard_of",
        "store.record_codec.decode_record",
        "store.record_codec.encode_record",
        "store.redis.scripts.ScriptRunner.run",
        "store.redis.server.Server.execute",
        "store.sessions.RedisStore.commit",
        "store.sessions.RedisStore.load",
    } <= TARGETS.keys()
