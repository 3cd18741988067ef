"""The parts of `make bench` that could be wrong without anybody noticing."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.artifacts import write_artifact
from support.paths import ROOT

from app.schemas.events import EventIn
from benchmarks import gpu_step, scaling
from benchmarks.batch_queue import BatchCost, fit, simulate_open, simulate_pausing
from benchmarks.hotpath import targets
from benchmarks.hotpath.artifact import with_compiled_step
from benchmarks.hotpath.commits import commit_calls, recorded, replay
from benchmarks.hotpath.compare import Sample, few_table, in_turn, tables
from benchmarks.hotpath.flat import Live
from benchmarks.hotpath.load import load
from benchmarks.hotpath.processes import (
    BenchmarkError,
    Cores,
    cpu_s,
    fine_cpu_s,
    free_port,
    pinned,
    resident_bytes,
    start,
    stop,
    tree,
)
from benchmarks.hotpath.redis_server import running_redis
from benchmarks.hotpath.results import machine_line, read_section, write_markdown, write_section
from benchmarks.hotpath.servers import Contestant
from benchmarks.hotpath.traffic import Traffic, batch_body, session_id, single_body, zipf_lengths
from benchmarks.scaling import Cost

DEADLINE_S = 30


# What it posts


def test_every_posted_event_is_one_that_the_service_accepts() -> None:
    bodies = [single_body(session_id("0123abcd", number), number) for number in range(1, 500)]

    events = [EventIn.model_validate_json(body) for body in bodies]

    assert len({event.event_id for event in events}) == len({event.session_id for event in events}) == 499
    assert "purchase" not in {event.event_name for event in events}


def test_a_batch_has_an_event_of_each_session() -> None:
    sessions = [session_id("0123abcd", number) for number in range(1, 201)]

    events = [EventIn.model_validate(event) for event in json.loads(batch_body(sessions, 1000))]

    assert [event.session_id for event in events] == sessions


def test_a_session_keeps_its_properties_and_sessions_differ_in_them() -> None:
    sessions = [session_id("0123abcd", number) for number in range(1, 201)]

    passes = [[EventIn.model_validate(event) for event in json.loads(batch_body(sessions, 200 * n))] for n in range(3)]

    for first, *others in zip(*passes, strict=True):
        assert all(event.properties == first.properties for event in others)
    assert len({json.dumps(event.properties) for event in passes[0]}) > 20
    assert all(set(event.properties) == {"device", "campaign", "visits"} for event in passes[0])


def test_session_lengths_are_many_short_ones_and_a_few_very_long_ones() -> None:
    lengths = zipf_lengths(1, 300)

    assert min(lengths) == 1
    assert lengths.count(1) > 0.4 * len(lengths)
    assert max(lengths) > 200
    assert 8 < sum(lengths) / len(lengths) < 12
    assert set(zipf_lengths(6, 6)) == {6}


def test_the_file_for_wrk_has_the_whole_head_of_a_request() -> None:
    told = Traffic(batch=200, pause_ms=1.5, prefix="0123abcd").lua("/v1/events/batch", {"Authorization": "Bearer k"})

    assert r'"POST /v1/events/batch HTTP/1.1\r\n' in told
    assert r"\r\nAuthorization: Bearer k\r\nContent-Length: " in told
    assert "  batch = 200,\n" in told
    assert "  pause_ms = 1.5,\n" in told
    assert told.count('"visits\\": ') == 1024


# What it makes of failures

# Answers 200 to every batch; every second event in it was refused. Told each request's head and length.
BATCH_SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        events = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print(self.headers["traceparent"], self.headers["X-Request-Id"], self.headers["Content-Length"], flush=True)
        results = [{"status": (200, 503)[at % 2]} for at in range(len(events))]
        body = json.dumps({"results": results}, separators=(",", ":"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    # wrk closes its connections before the last answer. The traceback of that would go into the log of requests.
    def handle_error(self, *_): pass
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_refused_events_of_a_batch_are_failures_and_no_two_requests_are_alike(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    process = start([sys.executable, "-c", BATCH_SERVER, str(port)], {}, log, answers)
    try:
        found = load(port, "/v1/events/batch", Traffic(batch=4), seconds=1, connections=1)
    finally:
        stop(process)

    assert (found.refused, found.broken) == (0, 0)
    assert found.failed == found.refused_events == 2 * found.requests > 0
    posted = [line.split() for line in log.read_text().splitlines()]
    traces, ids, lengths = ({line[column] for line in posted} for column in range(3))
    assert len(traces) == len(ids) == len(posted)
    assert len(lengths) > 1


def a_sample(events_per_s: float, failed: int = 0, board_entries: float = 0.0) -> Sample:
    return Sample(events_per_s, events_per_s, 1.0, 2.0, 3.0, 50.0, 20.0, 10.0, 100.0, 1, failed, board_entries)


def test_a_round_with_a_failure_is_void_in_figures_and_ratios() -> None:
    contestants = [Contestant(name, name.upper(), lambda _port: []) for name in ("willbuy", "peer", "broken")]
    samples = {
        "willbuy": [a_sample(1000, board_entries=31), a_sample(9, failed=1), a_sample(2000, board_entries=33)],
        "peer": [a_sample(500), a_sample(700), a_sample(90_000, failed=80_000)],
        "broken": [a_sample(5, failed=5)] * 3,
    }

    told = "\n".join(tables(contestants, samples))

    assert "| WILLBUY | 1 | 1,500 (1,000 to 2,000) |" in told
    assert "| 32 (31 to 33) |" in told
    assert "| PEER | 1 | 600 (500 to 700) |" in told
    # Of the first round alone.
    assert "| PEER | 0.50 |" in told
    assert "| BROKEN | 0 | void |" in told
    assert told.endswith("Void rounds, in which requests or events failed: WILLBUY: 1, PEER: 1, BROKEN: 3.")
    with_few = few_table(contestants[:2], {8: {name: samples[name] for name in ("willbuy", "peer")}})
    assert with_few[-1].endswith("failed: WILLBUY, 8 connections: 1, PEER, 8 connections: 1.")
    assert "| PEER | 8 | 600 (500 to 700) |" in with_few[3]


def test_the_ratio_to_the_empty_endpoint_is_of_events_and_of_valid_rounds() -> None:
    contestants = [Contestant("empty", "EMPTY", lambda _port: []), Contestant("b", "BATCH", lambda _port: [], batch=10)]
    samples = {"empty": [a_sample(1000), a_sample(1000, failed=1)], "b": [a_sample(100), a_sample(900)]}

    told = tables(contestants, samples)

    # 50 us a request of ten events, against 50 us a request
    assert "| 5.0 (5.0 to 5.0) | 0.10 |" in told[3]


def test_targets_stand_beside_ratios_of_valid_rounds() -> None:
    def rates(*per_s: float) -> list[Sample]:
        return [a_sample(rate, failed=rate < 0) for rate in per_s]

    samples = {
        "willbuy": rates(600, 700),
        "empty": rates(1000, 1000),
        "mosec": rates(1000, -1),
        "willbuy-batch": rates(3000, 3000),
        "willbuy-batch-before": rates(1500, 2000),
    }
    few = {1: {"willbuy": rates(5), "willbuy-before": rates(5)}, 8: {"willbuy": rates(6), "willbuy-before": rates(4)}}
    lives = [
        Live(3, many, huge, with_few=rates(100), with_many=rates(many))
        for many, huge in ((50, False), (80, False), (90, True))
    ]

    reached = [line.split(" | ")[1].removesuffix(" |") for line in targets.table(samples, few, lives, 200)[2:]]

    assert reached == [
        "1.00 (1.00 to 1.00)",
        "not measured",
        "0.60",
        "willbuy's model not measured; plain LSTM 1.00",
        "1.00",
        "1.50",
        "1.75 (1.50 to 2.00)",
        "0.2 (0.2 to 0.2)",
        "20.0 (20.0 to 20.0)",
        "0.80",
    ]
    assert {line.split(" | ")[1] for line in targets.table({}, {}, [], 200)[2:]} == {
        "not measured |",
        "willbuy's model not measured; plain LSTM not measured |",
    }


# Answers 200 to every request.
SERVER = """
import asyncio, sys
async def answer(reader, writer):
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            length = next(line for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    await (await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))).serve_forever()
asyncio.run(main())
"""


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_servers_that_run_beside_each_other_take_turns() -> None:
    chosen = [Contestant(name, name, lambda port: [sys.executable, "-c", SERVER, str(port)]) for name in ("a", "b")]
    chosen[1] = replace(chosen[1], busy_when_idle=True)  # stands still between its turns
    notes: list[str] = []

    found = in_turn(chosen, rounds=2, seconds=1, show=notes.append, connections=2)

    assert [note.rpartition(" ")[2] for note in notes] == ["a", "b", "a", "b", "b", "a"]
    assert all(sample.events_per_s > 0 and not sample.failed for name in "ab" for sample in found[name])
    assert {len(samples) for samples in found.values()} == {2}


# Where it runs


@pytest.mark.parametrize(
    ("cores", "server", "two_workers", "redis", "generator"),
    [
        ((0,), (0,), (0,), (0,), (0,)),
        ((0, 1), (0,), (0, 1), (1,), (1,)),
        ((0, 1, 2), (0,), (0, 1), (2,), (2,)),
        ((4, 5, 6, 7), (4,), (4, 5), (6,), (7,)),
    ],
)
def test_parts_have_cores_of_their_own_where_there_are_enough(
    cores: tuple[int, ...],
    server: tuple[int, ...],
    two_workers: tuple[int, ...],
    redis: tuple[int, ...],
    generator: tuple[int, ...],
) -> None:
    assert list(Cores(cores).parts().values()) == [server, two_workers, redis, generator]


def test_a_pinned_program_runs_on_its_cores_alone() -> None:
    core = min(os.sched_getaffinity(0))
    program = "import os; print(*os.sched_getaffinity(0))"

    told = subprocess.run([*pinned((core,)), sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert told.stdout.split() == [str(core)]


# What it replays


def test_commits_are_recorded_to_the_byte_and_replayed_with_the_same_result() -> None:
    values = {f"key-{number}": bytes(range(256)) * number + b'"\\\r\n' for number in range(1, 20)}
    with running_redis() as redis, redis.connect() as client:
        commit = client.script_load("return redis.call('SET', KEYS[1], ARGV[1])")
        other = client.script_load("return 1")
        with recorded(redis) as chunks:
            deadline_s = time.monotonic() + DEADLINE_S
            while not chunks and time.monotonic() < deadline_s:  # MONITOR has begun
                client.ping()
            for key, value in values.items():
                client.evalsha(commit, 1, key, value)
            client.evalsha(other, 0)
            while b"".join(chunks).count(b'"EVALSHA"') < 20 and time.monotonic() < deadline_s:
                time.sleep(0.01)

        calls = commit_calls(b"".join(chunks))
        client.flushall()
        found = replay(redis, b"".join(calls), calls=len(calls), events=len(values), keys=len(values))

        assert {key: client.get(key) for key in values} == values
    assert found.events_per_s > 0


def test_a_replay_that_leaves_another_number_of_keys_is_an_error() -> None:
    with running_redis() as redis, redis.connect() as client:
        commit = client.script_load("return redis.call('SET', KEYS[1], '')").encode()
        call = b"*4\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$1\r\nk\r\n" % commit

        with pytest.raises(BenchmarkError, match="commits were refused"):
            replay(redis, call, calls=1, events=1, keys=1000)


# What it counts


def test_a_server_is_counted_with_all_that_descends_from_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = "import time\nblock = bytearray(64 * 2**20)\nprint('ready', flush=True)\nwhile True: time.sleep(0)"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    process = start([sys.executable, "-c", parent], {}, log, lambda: "ready" in log.read_text())
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while cpu_s(process.pid) < 0.2 and time.monotonic() < deadline_s:
            time.sleep(0.05)

        assert len(tree(process.pid)) == 2
        assert cpu_s(process.pid) >= 0.2
        assert fine_cpu_s(process.pid) > 0.1
        assert resident_bytes(process.pid) > 64 * 2**20
    finally:
        stop(process)
    with pytest.raises(BenchmarkError, match="has ended"):
        tree(process.pid)


def test_a_server_that_does_not_start_says_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no such model"):
        start([sys.executable, "-c", "raise SystemExit('no such model')"], {}, tmp_path / "log", lambda: False)


# Where it writes


def test_a_table_takes_the_place_of_the_one_before_it_and_of_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("# Page\n\n[//]: # (hotpath:one begin)\n\n[//]: # (hotpath:one end)\n\nAfter.\n")

    write_markdown("one", ["| a |", "| --- |"], document)
    write_markdown("one", ["| b |", "| --- |"], document)

    assert document.read_text() == (
        "# Page\n\n[//]: # (hotpath:one begin)\n\n| b |\n| --- |\n\n[//]: # (hotpath:one end)\n\nAfter.\n"
    )
    with pytest.raises(BenchmarkError, match="hotpath:two begin"):
        write_markdown("two", [], document)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        (
            "docs/reference/hot-path.md",
            [
                *("targets", "compare", "tails", "connections", "step", "flat", "memory", "leak"),
                *("scaling-fit", "scaling-load", "scaling-check"),
            ],
        ),
        ("docs/scaling.md", ["scaling-cost", "scaling-machines"]),
    ],
)
def test_every_table_has_its_place_in_the_documents(tmp_path: Path, page: str, names: list[str]) -> None:
    copy = tmp_path / "copy.md"
    copy.write_bytes((ROOT / page).read_bytes())

    for name in names:
        write_markdown(name, [f"table {name}"], copy)

    assert all(f"table {name}" in copy.read_text() for name in names)


def test_a_measurement_replaces_its_own_section_alone(tmp_path: Path) -> None:
    file = tmp_path / "results" / "hotpath.json"

    write_section("one", {"date": "2026-11-22"}, {"x": 1}, file)
    write_section("two", {"date": "2026-11-22"}, {"x": 2}, file)
    write_section("one", {"date": "2026-11-23"}, {"x": 3}, file)

    assert read_section("one", file) == {"machine": {"date": "2026-11-23"}, "x": 3}
    assert read_section("two", file)["x"] == 2
    with pytest.raises(BenchmarkError, match="hotpath three"):
        read_section("three", file)


def test_the_line_of_the_machine_names_cores_step_and_the_state_before() -> None:
    machine = {"date": "2026-11-30", "processor": "2 cores, CPU", "memory": "24 GiB", "cores": "server 0, Redis 1"}

    told = "Measured on 2026-11-30: 2 cores, CPU, 24 GiB. Cores: server 0, Redis 1."
    assert machine_line(machine) == told
    assert machine_line(machine | {"step": "compiled", "before": "7c47f1a of 2026-11-23"}) == (
        f"{told} Step of willbuy: compiled. Before: 7c47f1a of 2026-11-23."
    )


# What it serves


def test_an_artifact_is_served_as_it_is_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write_artifact(tmp_path / "model.pt")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert with_compiled_step(artifact, tmp_path) == artifact


# What it simulates


def test_the_cost_of_a_batch_is_found_from_runs_that_lie_on_a_line() -> None:
    cost = BatchCost(fixed_us=400.0, event_us=25.0)

    found = fit([(size, cost.us(size)) for size in (1, 2, 7, 30)])

    assert found.fixed_us == pytest.approx(400)
    assert found.event_us == pytest.approx(25)


def test_events_that_come_rarely_are_answered_alone_and_at_once() -> None:
    found = simulate_open(BatchCost(fixed_us=400.0, event_us=25.0), events_per_s=10.0)

    assert found.batch_size == pytest.approx(1, abs=0.02)
    assert found.p50_ms == pytest.approx(0.425)


def test_batches_grow_with_the_load_until_they_carry_it() -> None:
    cost = BatchCost(fixed_us=400.0, event_us=25.0)

    found = simulate_open(cost, events_per_s=20_000.0)

    # A queue that neither grows nor empties takes in as many events as it answers: n = rate * (a + b n).
    assert found.events_per_s == pytest.approx(20_000, rel=0.02)
    assert found.batch_size == pytest.approx(0.02 * 400 / (1 - 0.02 * 25), rel=0.1)


def test_connections_are_either_pausing_or_waiting() -> None:
    found = simulate_pausing(BatchCost(fixed_us=400.0, event_us=25.0), connections=64, pause_ms=10.0)

    # Little's law over the whole cycle of a connection.
    assert found.events_per_s * (10.0 + found.mean_ms) / 1000 == pytest.approx(64, rel=0.02)


# What the step costs


def test_the_step_is_measured_for_every_size_as_the_service_makes_it(tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "model.pt")

    steps = [step for step in gpu_step.measure(artifact, 4, lambda _note: None) if step.device == "cpu"]

    assert [step.batch for step in steps] == [1, 2, 4]
    assert all(min(step.advance_us, step.network_us, step.floor_us) > 0 for step in steps)
    assert len(gpu_step.table(steps)) == 2 + len(steps) + 2
    if torch.backends.mkldnn.is_available():
        # The network alone is the one that the predictor has, whose weights are laid out for the processor.
        assert gpu_step.Device(artifact, "cpu", 4).module.lstm.packed


# What it reckons


@pytest.mark.parametrize(
    ("rate", "sessions", "primaries"),
    [
        (1_000, 10_000, 1),
        # 20 us an event and 80 % of a processor carry 40,000 events a second.
        (40_000, 1_000, 1),
        (40_001, 1_000, 2),
        # With a million sessions on each it is 40 us, with a thousand million 60.
        (20_000, 1_000_000, 1),
        (20_001, 1_000_000, 2),
        (13_333, 1_000_000_000, 1),
    ],
)
def test_a_primary_carries_less_the_more_sessions_it_has(rate: int, sessions: int, primaries: int) -> None:
    cost = Cost(
        single_us=100.0,
        batch_us=50.0,
        redis_single_us=20.0,
        redis_batch_us=20.0,
        crowd_us=20.0,
        crowd_huge_us=10.0,
        session_bytes=1500.0,
        commit_bytes=1000.0,
        few=1_000,
        crowd=1_000_000,
    )

    assert cost.primaries(rate, cost.redis_single_us, sessions, 0.8) == primaries


def test_costs_are_of_valid_rounds_and_huge_pages_may_be_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounds(redis_us: float) -> list[dict[str, float]]:
        valid = {"server_us": 100.0, "redis_us": redis_us, "failed": 0}
        return [valid, valid | {"redis_us": 900.0, "failed": 7}]

    file = tmp_path / "hotpath.json"
    servers = {
        "willbuy-cluster": {"events_per_request": 1, "rounds": rounds(30.0)},
        "willbuy-batch-cluster": {"events_per_request": 200, "rounds": rounds(20.0)},
    }
    lives = [
        {"few": 3000, "many": many, "huge_pages": False, "with_few": rounds(30.0), "with_many": rounds(many_us)}
        for many, many_us in ((33_000, 40.0), (300_000, 70.0))
    ]
    write_section("compare", {}, {"servers": servers, "redis_alone": {"bytes_per_event": 1000.0}}, file)
    write_section("memory", {}, {"used_bytes": 1500.0, "key_bytes": 1400.0}, file)
    write_section("flat", {}, {"live": lives}, file)
    monkeypatch.setattr(scaling, "read_section", lambda name: read_section(name, file))

    cost = scaling.read_cost()

    assert (cost.redis_single_us, cost.redis_batch_us, cost.batch_us) == (30.0, 20.0, 0.5)
    assert (cost.crowd, cost.crowd_us, cost.crowd_huge_us) == (300_000, 40.0, None)
    assert "| 40.0 µs more an event |" in "\n".join(scaling.cost_table(cost))
