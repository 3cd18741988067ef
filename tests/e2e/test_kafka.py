"""`willbuy consume` as a real process: against a real broker, and against a cluster whose brokers fail on demand."""

import asyncio
import json
import time
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from conftest import missing
from support.kafka import HEARTBEAT, OFFSET_COMMIT, ConsumingService, MockCluster, Tansu, find_tansu
from support.redis_servers import free_port
from support.tls import behind_tls, make_certificate

# A group forms and changes in seconds, on a busy machine in ten times that.
pytestmark = pytest.mark.timeout(120)

# Codes of errors: a coordinator that moves, a group that rebalances, a member that another one replaces
NOT_COORDINATOR, REBALANCE_IN_PROGRESS, FENCED_INSTANCE_ID = 16, 27, 82


@pytest.fixture
def start_tansu(tmp_path):
    """Start the broker: `start_tansu(option=...)`."""
    binary = find_tansu()
    if binary is None:
        raise missing("tansu")
    started: list[Tansu] = []

    def start(**options):
        started.append(Tansu(binary, tmp_path / "tansu.log", **options))
        return started[-1]

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture
def mock_cluster():
    cluster = MockCluster()
    cluster.create("events", "scores", "events-dead-letters")
    yield cluster
    cluster.stop()


@pytest.fixture
def consume(artifact, tmp_path, valkey):
    """Start `willbuy consume` with a short session time-out: `consume(broker, properties="", setting=...)`."""
    started: list[ConsumingService] = []

    def start(broker, *, topic="events", properties="", **settings):
        number = len(started)
        file = tmp_path / f"{number}.properties"
        file.write_text(f"session.timeout.ms=6000\nheartbeat.interval.ms=300\n{properties}")
        options = {"brokers": broker.brokers, "topic": topic, "properties": file}
        options["scores"] = topic.replace("events", "scores")
        service = ConsumingService(
            tmp_path / f"consumer-{number}.log",
            {"artifact": artifact, "redis_url": valkey.url} | settings,
            options,
        )
        started.append(service)
        service.start()
        return service

    yield start
    for service in started:
        service.stop()


def event(session_id, number, **fields):
    body = {"session_id": session_id, "event_name": "view_item", "event_id": f"{session_id}-{number}"} | fields
    return session_id, json.dumps(body).encode()


def until(state, timeout_s=60):
    deadline_s = time.monotonic() + timeout_s
    while not (found := state()):
        assert time.monotonic() < deadline_s
        # Each look is a consumer of its own, or a page of metrics.
        time.sleep(0.2)
    return found


def lines(properties):
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def checks_of(service):
    return httpx.get(f"{service.base_url}/readyz", timeout=30).json()["checks"]


def events_of(service, session_id):
    return httpx.get(f"{service.base_url}/v1/sessions/{session_id}").json().get("events", 0)


def metric(service, name):
    lines = httpx.get(f"{service.base_url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"willbuy_{name}"))


def test_events_are_scored_and_answered_by_session_in_their_order(mock_cluster, consume):
    sessions = [f"s-{number}" for number in range(20)]
    mock_cluster.topics.send("events", [event(name, number) for number in range(5) for name in sessions])
    service = consume(mock_cluster)
    answers = mock_cluster.topics.read("scores", 100)
    by_session: dict[str, list[int]] = {name: [] for name in sessions}
    for answer in answers:
        body = json.loads(answer.value())
        assert answer.key().decode() == body["session_id"]
        assert 0 < body["probability"] < 1
        by_session[body["session_id"]].append(body["events"])
    assert by_session == {name: [1, 2, 3, 4, 5] for name in sessions}
    until(lambda: mock_cluster.topics.committed("events") == 100)
    assert events_of(service, "s-7") == 5


def test_what_cannot_be_scored_goes_to_the_dead_letters_with_the_reason_and_stops_nothing(mock_cluster, consume):
    topics = mock_cluster.topics
    topics.send(
        "events",
        [
            ("a", b'{"session_id": "a"'),
            ("a", None),
            ("a", json.dumps({"session_id": "a", "event_name": "view_item", "price": "12"}).encode()),
            ("a", json.dumps({"session_id": "a", "event_name": "home", "timestamp": 1_000_000_000_000}).encode()),
            ("a", b"{" + b" " * 70_000 + b"}"),
            event("a", 1),
            event("a", 1, item_id="another"),
        ],
        headers={"origin": "shop"},
    )
    service = consume(mock_cluster)
    dead = topics.read("events-dead-letters", 6)
    headers = [dict(message.headers()) for message in dead]
    codes = [found["willbuy-code"].decode() for found in headers]
    assert codes == [
        "invalid_json",
        "invalid_json",
        "invalid_event",
        "invalid_event",
        "body_too_large",
        "event_id_reused",
    ]
    assert [bool(message.value()) for message in dead] == [True, False, True, True, True, True]
    assert all(message.key() == b"a" for message in dead)
    assert all(found["origin"] == b"shop" for found in headers)
    assert headers[2]["willbuy-reason"].startswith(b"price: ")
    topic, _, offset = headers[2]["willbuy-source"].decode().split("/")
    assert (topic, int(offset)) == ("events", 2)
    (answer,) = topics.read("scores", 1)
    assert json.loads(answer.value())["events"] == 1
    assert metric(service, "kafka_dead_letters_total") == 6
    until(lambda: topics.committed("events") == 7)


def test_messages_that_come_again_count_once_also_without_an_event_id(mock_cluster, consume):
    topics = mock_cluster.topics
    without = [(name, json.dumps({"session_id": name, "event_name": "home"}).encode()) for name in ("b", "b", "c")]
    topics.send("events", [*without, event("c", 1), event("c", 1)])
    first = consume(mock_cluster)
    until(lambda: topics.committed("events") == 5)
    assert (events_of(first, "b"), events_of(first, "c")) == (2, 2)
    # Another group begins at the beginning, as this one would after a crash.
    consume(mock_cluster, properties="group.id=again")
    answers = [json.loads(message.value()) for message in topics.read("scores", 10)]
    assert sorted(answer["duplicate"] for answer in answers) == [False] * 4 + [True] * 6
    assert (events_of(first, "b"), events_of(first, "c")) == (2, 2)


def test_an_event_without_a_time_has_the_time_of_its_message(mock_cluster, consume):
    two_days_ago_ms = time.time_ns() // 1_000_000 - 2 * 86_400_000
    mock_cluster.topics.send("events", [event("t", 1)], timestamp=two_days_ago_ms)
    consume(mock_cluster)
    (dead,) = mock_cluster.topics.read("events-dead-letters", 1)
    assert b"at most 86400 s in the past" in dict(dead.headers())["willbuy-reason"]


def test_without_brokers_sigterm_ends_the_process(start_tansu, consume):
    tansu = start_tansu()
    tansu.topics.create("events", "scores")
    service = consume(tansu)
    tansu.topics.send("events", [event("n", 1)])
    until(lambda: tansu.topics.committed("events") == 1)
    tansu.stop()
    until(lambda: httpx.get(f"{service.base_url}/readyz", timeout=30).status_code == 503)
    service.terminate()
    assert service.wait(30) == 0


def test_without_redis_reading_pauses_and_nothing_is_lost_or_out_of_order(mock_cluster, consume, start_redis):
    redis = start_redis("valkey-8.1")
    topics = mock_cluster.topics
    settings = {"redis_url": redis.url, "redis_timeout_s": 0.3, "request_timeout_s": 0.5, "max_batch_events": 50}
    service = consume(mock_cluster, **settings)
    sessions = [f"p-{number}" for number in range(40)]
    topics.send("events", [event(name, 0) for name in sessions])
    topics.read("scores", 40)
    redis.pause()
    topics.send("events", [event(name, number) for number in range(1, 6) for name in sessions])
    until(lambda: metric(service, "kafka_paused") == 1)
    until(lambda: metric(service, "kafka_lag") == 200)
    assert httpx.get(f"{service.base_url}/readyz", timeout=30).json()["checks"]["kafka"] == "ok"
    redis.resume()
    by_session: dict[str, list[int]] = {name: [] for name in sessions}
    for answer in topics.read("scores", 240):
        body = json.loads(answer.value())
        by_session[body["session_id"]].append(body["events"])
    assert by_session == {name: [1, 2, 3, 4, 5, 6] for name in sessions}
    until(lambda: topics.committed("events") == 240)
    until(lambda: metric(service, "kafka_lag") == 0)
    assert metric(service, "kafka_paused") == 0
    assert metric(service, "kafka_dead_letters_total") == 0


def test_brokers_that_go_and_errors_of_commits_lose_nothing(mock_cluster, consume):
    topics = mock_cluster.topics
    mock_cluster.lead("events", 1)
    mock_cluster.lead("scores", 3)
    mock_cluster.coordinate("willbuy", 2)
    service = consume(mock_cluster, properties="reconnect.backoff.max.ms=200\n")
    topics.send("events", [event("k", number) for number in range(10)])
    until(lambda: topics.committed("events") == 10)
    mock_cluster.fail(OFFSET_COMMIT, NOT_COORDINATOR, REBALANCE_IN_PROGRESS)
    topics.send("events", [event("k", number) for number in range(10, 20)])
    until(lambda: topics.committed("events") == 20)
    mock_cluster.down(1)
    mock_cluster.lead("events", 3)
    topics.send("events", [event("k", number) for number in range(20, 30)])
    until(lambda: topics.committed("events") == 30)
    mock_cluster.up(1)
    mock_cluster.down(2)
    mock_cluster.coordinate("willbuy", 1)
    topics.send("events", [event("k", number) for number in range(30, 40)])
    until(lambda: topics.committed("events") == 40)
    assert events_of(service, "k") == 40
    answers = [json.loads(message.value()) for message in topics.read("scores")]
    # What a rebalance had read again is a duplicate.
    assert [answer["events"] for answer in answers if not answer["duplicate"]] == list(range(1, 41))
    assert metric(service, "kafka_errors_total") >= 2


def test_a_member_whose_commit_meets_a_rebalance_goes_on_with_the_partitions_that_it_keeps(mock_cluster, consume):
    topics = mock_cluster.topics
    services = [consume(mock_cluster)]
    sent = 0

    def shares():
        # Events without a break, so that a commit is under way when the group changes
        nonlocal sent
        topics.send("events", [event(f"r-{number}", f"{sent}-{number}") for number in range(20)])
        sent += 20
        return [metric(service, "kafka_partitions ") for service in services]

    until(lambda: shares() == [4])
    services.append(consume(mock_cluster))
    until(lambda: shares() == [2, 2])
    until(lambda: topics.committed("events") == sent)


def test_partitions_that_go_and_come_back_during_a_pause_are_read(mock_cluster, consume, start_redis):
    topics = mock_cluster.topics
    redis = start_redis("valkey-8.1")
    settings = {"redis_url": redis.url, "redis_timeout_s": 0.3, "request_timeout_s": 0.5}
    first = consume(mock_cluster, **settings)
    until(lambda: metric(first, "kafka_partitions ") == 4)
    redis.pause()
    # The first batch is scored, the second is ready, and neither can go on
    topics.send("events", [event("p-0", 0)])
    until(lambda: metric(first, "kafka_lag") == 1)
    topics.send("events", [event(f"p-{number}", 1) for number in range(20)])
    until(lambda: metric(first, "kafka_paused") == 1)
    second = consume(mock_cluster, **settings)
    until(lambda: [metric(service, "kafka_partitions ") for service in (first, second)] == [2, 2])
    redis.resume()
    second.stop()
    until(lambda: metric(first, "kafka_partitions ") == 4)
    topics.send("events", [event(f"p-{number}", 2) for number in range(20)])
    until(lambda: topics.committed("events") == 41)


def test_sigterm_commits_what_was_answered_and_the_next_one_goes_on_there(start_tansu, consume):
    tansu = start_tansu()
    topics = tansu.topics
    topics.create("events-stop", "scores-stop", "events-stop-dead-letters")
    sent = 4000
    topics.send("events-stop", [event(f"d-{number % 40}", number) for number in range(sent)])
    first = consume(tansu, topic="events-stop", max_batch_events=20)
    answered = len(topics.read("scores-stop", 100))
    first.terminate()
    assert first.wait(60) == 0
    assert answered <= topics.committed("events-stop") < sent
    consume(tansu, topic="events-stop")
    answers = [json.loads(message.value()) for message in topics.read("scores-stop", sent)]
    # A drain leaves nothing to replay.
    assert not any(answer["duplicate"] for answer in answers)
    assert topics.committed("events-stop-dead-letters", "reader") == 0


def test_a_member_that_another_one_replaces_ends_with_status_one(mock_cluster, consume):
    service = consume(mock_cluster, properties="group.instance.id=one\n")
    mock_cluster.topics.send("events", [event("f", 1)])
    until(lambda: mock_cluster.topics.committed("events") == 1)
    mock_cluster.fail(HEARTBEAT, *[FENCED_INSTANCE_ID] * 3)
    assert service.wait(30) == 1
    assert "fenced by other consumer" in service.output()


def test_readiness_names_a_topic_that_is_missing(mock_cluster, consume):
    service = consume(mock_cluster, topic="nothing")
    checks = httpx.get(f"{service.base_url}/readyz").json()["checks"]
    assert checks["kafka"] == "unknown_topic_or_part"


@pytest.mark.anyio
async def test_the_properties_file_can_ask_for_tls_with_a_certificate_of_the_client(start_tansu, consume, tmp_path):
    certificate, key = make_certificate(tmp_path)
    server = SimpleNamespace(port=free_port())
    trust = {"security.protocol": "ssl", "ssl.ca.location": str(certificate)}
    shown = {"ssl.certificate.location": str(certificate), "ssl.key.location": str(key)}
    async with behind_tls(server, (certificate, key), clients=certificate) as port:
        tansu = await asyncio.to_thread(partial(start_tansu, port=server.port, advertised=port, security=trust | shown))
        topics = tansu.topics
        await asyncio.to_thread(topics.create, "events", "scores", "events-dead-letters")
        await asyncio.to_thread(topics.send, "events", [event("t", number) for number in range(3)])
        service = await asyncio.to_thread(partial(consume, tansu, properties=lines(trust | shown)))
        answers = await asyncio.to_thread(topics.read, "scores", 3)
        assert [json.loads(answer.value())["events"] for answer in answers] == [1, 2, 3]
        assert (await asyncio.to_thread(checks_of, service))["kafka"] == "ok"

        without = await asyncio.to_thread(partial(consume, tansu, properties=lines(trust)))
        # The broker's alert, or its closed connection, whichever the client sees first
        await asyncio.to_thread(until, lambda: "kafka_failed" in without.output())
        assert (await asyncio.to_thread(checks_of, without))["kafka"] != "ok"


def test_the_properties_file_can_ask_for_sasl_and_its_password_is_shown_nowhere(start_tansu, consume):
    tansu = start_tansu(options=["--authentication"])
    password = "hush-0123456789"
    sasl = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "willbuy"}
    service = consume(tansu, properties=lines(sasl | {"sasl.password": password}))
    # The broker knows no users, and asks for the whole exchange before it says so.
    until(lambda: "SASL SCRAM authentication failed: broker responded with unknown-user" in service.output())
    print(service.output(), checks_of(service))
    assert checks_of(service)["kafka"] == "transport"
    assert password not in service.output()
