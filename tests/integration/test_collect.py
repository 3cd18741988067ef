"""Collecting from real servers: each session once in the folder, whatever is broken off."""

import asyncio
import json
from typing import Any

import polars as pl
import pytest
import redis
from conftest import missing
from redis.exceptions import RedisError
from support.redis_keys import outcomes_key
from support.redis_servers import find_binary
from support.redis_topologies import RedisCluster, Sentinels
from support.tls import behind_tls, make_certificate
from typer.testing import CliRunner

from app.store.keys import shard_of
from training.cli import cli
from training.collect import collector as collector_module
from training.collect.collector import Collector, collect, locked
from training.collect.connection import open_client
from training.collect.errors import CollectError
from training.collect.streams import Streams
from training.data.sources.canonical import DISTINCT, EQUAL_ROWS_KEY, parquet_metadata
from training.data.sources.errors import SourceError


class _DiedError(Exception):
    pass


def publish(client, *session_ids, outcome="none", closed_ms=1_795_402_578_380):
    """What a replica does with a session that has ended."""
    for session_id in session_ids:
        session = {
            "format": 1,
            "session_id": session_id,
            "outcome": outcome,
            "closed_by": "idle",
            "outcome_ms": 9 if outcome == "purchase" else None,
            "closed_ms": closed_ms,
            "last_seen_ms": 1,
            "events": [{"event_name": "page_view", "timestamp_ms": 5}],
        }
        client.xadd(outcomes_key(shard_of(session_id)), {"id": session_id, "session": json.dumps(session)})


@pytest.fixture
def client(redis_server):
    with redis.Redis.from_url(redis_server.url) as opened:
        untyped: Any = opened
        yield untyped


@pytest.fixture
def streams(redis_server):
    opened = open_client(redis_server.url)
    yield Streams(opened, group="willbuy", consumer="collect")
    opened.close()


def collected(folder):
    """The session of each row, without what makes its id unique."""
    frames = [pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    return sorted(session_id.partition("@")[0] for frame in frames for session_id in frame["session_id"])


def run(streams, folder, **options):
    made = Collector(streams, folder, **options)
    collect(made, follow=False, every_s=1)
    return made.collected


IDS = [f"s{number}" for number in range(300)]
# More in one shard than a read takes of it.
OF_A_SHARD = [name for name in map(str, range(60_000)) if shard_of(name) == 0xFF][:200]


def test_every_session_is_collected_once_however_often_it_runs(client, streams, tmp_path):
    publish(client, *IDS[:200])
    publish(client, *IDS[200:], outcome="purchase")
    first = run(streams, tmp_path)
    assert (first.sessions, first.buyers, first.events, first.files) == (300, 100, 300, 1)
    publish(client, "later")
    second = run(streams, tmp_path)
    assert (second.sessions, second.repeated, second.gone) == (1, 0, 0)
    assert run(streams, tmp_path).sessions == 0
    assert collected(tmp_path) == sorted([*IDS, *IDS[200:], "later"])


def test_files_have_so_many_sessions_at_most_about(client, streams, tmp_path):
    publish(client, *OF_A_SHARD)
    found = run(streams, tmp_path, sessions_a_file=50)
    sizes = [len(pl.read_parquet(path)) for path in tmp_path.glob("*.parquet")]
    # Each read of a shard takes 64.
    assert sorted(sizes) == [8, 64, 64, 64]
    assert (found.sessions, found.files) == (200, 4)
    assert collected(tmp_path) == sorted(OF_A_SHARD)


def test_a_file_has_its_sessions_by_the_time_of_their_end_and_equal_events_are_distinct(client, streams, tmp_path):
    for number, session_id in enumerate(IDS[:50]):
        publish(client, session_id, closed_ms=1_795_402_578_380 - number)
    run(streams, tmp_path)
    (path,) = tmp_path.glob("*.parquet")
    assert [each.partition("@")[0] for each in pl.read_parquet(path)["session_id"]] == IDS[:50][::-1]
    assert parquet_metadata(path)[EQUAL_ROWS_KEY] == DISTINCT


def test_sessions_of_unknown_outcome_are_counted_and_acknowledged(client, streams, tmp_path):
    publish(client, "known")
    publish(client, "unknown", outcome="unknown")
    found = run(streams, tmp_path)
    assert (found.sessions, found.unknown, found.gone, found.files) == (1, 1, 0, 1)
    publish(client, "unknown", outcome="unknown")
    found = run(streams, tmp_path)
    assert (found.sessions, found.unknown, found.files) == (0, 1, 0)
    assert run(streams, tmp_path).unknown == 0


def test_of_two_consumers_that_make_the_group_at_once_both_read(client, streams, redis_server):
    publish(client, *OF_A_SHARD[:2])
    opened = open_client(redis_server.url)
    other = Streams(opened, group="willbuy", consumer="other")
    pipelines = []

    class Overtaken:
        """The other consumer makes the group just before this one does."""

        def pipeline(self, **options):
            pipelines.append(options)
            if len(pipelines) == 2:
                assert len(other.new(1)) == 1
            return client.pipeline(**options)

    assert len(Streams(Overtaken(), group="willbuy", consumer="collect").new(10)) == 1
    opened.close()


@pytest.mark.parametrize("ids", [IDS, OF_A_SHARD], ids=["of all shards", "of one"])
def test_a_run_that_died_before_it_acknowledged_is_finished_by_the_next(client, streams, tmp_path, monkeypatch, ids):
    publish(client, *ids)
    streams.new(len(ids))

    # Given a run that dies once the file stands under its name
    def die(_self, _entries):
        raise _DiedError

    with monkeypatch.context() as patched:
        patched.setattr(Streams, "acknowledge", die)
        with pytest.raises(_DiedError):
            run(streams, tmp_path)
    assert collected(tmp_path) == sorted(ids)
    publish(client, "later")
    # When the next one comes
    found = run(streams, tmp_path)
    # Then it recognises what is there
    assert (found.sessions, found.repeated) == (1, len(ids))
    assert collected(tmp_path) == sorted([*ids, "later"])
    assert run(streams, tmp_path).repeated == 0


def test_a_run_that_died_before_the_file_had_its_name_is_done_again(client, streams, tmp_path, monkeypatch):
    publish(client, *IDS)

    def die(_path):
        raise _DiedError

    with monkeypatch.context() as patched:
        patched.setattr(collector_module, "_fsync", die)  # private: dies between write and sync
        with pytest.raises(_DiedError):
            run(streams, tmp_path)
    assert collected(tmp_path) == []
    assert len(list(tmp_path.glob("*.partial"))) == 1
    # And what one left that had begun with another session
    (tmp_path / "outcomes-20261122T101640-00-1-0.partial").write_bytes(b"PAR1")
    assert run(streams, tmp_path).sessions == 300
    assert collected(tmp_path) == sorted(IDS)
    assert list(tmp_path.glob("*.partial")) == []


def test_what_was_erased_before_it_was_written_is_gone(client, streams, tmp_path):
    publish(client, "kept", "erased")
    # Given that both were given out, and nothing was acknowledged
    entries = streams.new(10)
    assert len(entries) == 2
    (entry,) = [entry for entry in entries if b"erased" in entry.session]
    client.xdel(outcomes_key(shard_of("erased")), entry.id.entry)
    found = run(streams, tmp_path)
    assert (found.sessions, found.gone) == (1, 1)
    assert collected(tmp_path) == ["kept"]
    assert run(streams, tmp_path).gone == 0


def test_where_all_was_erased_nothing_is_written_and_nothing_comes_again(client, streams, tmp_path):
    publish(client, "erased")
    (entry,) = streams.new(10)
    client.xdel(outcomes_key(shard_of("erased")), entry.id.entry)
    found = run(streams, tmp_path)
    assert (found.sessions, found.gone, found.files) == (0, 1, 0)
    assert run(streams, tmp_path).gone == 0


def test_another_group_gets_every_session_once_more(client, streams, tmp_path, redis_server):
    publish(client, *IDS[:10])
    for name, group in (("one", "willbuy"), ("two", "other")):
        folder = tmp_path / name
        folder.mkdir()
        opened = open_client(redis_server.url)
        run(Streams(opened, group=group, consumer="collect"), folder)
        opened.close()
        assert collected(folder) == sorted(IDS[:10])


def test_it_follows_and_survives_that_redis_is_away(start_redis, tmp_path):
    server = start_redis("valkey-8.1", appendonly=True)
    with redis.Redis.from_url(server.url) as client:
        publish(client, "before")
    opened = open_client(server.url)
    outages: list[RedisError] = []
    steps = iter(["kill", "start", "wait"])

    def stop():
        # Asked about once a second: Redis goes away, comes back with another session, and it is enough
        step = next(steps, None)
        if step == "kill":
            server.kill()
        elif step == "start":
            server.start()
            with redis.Redis.from_url(server.url) as client:
                publish(client, "after")
        return step is None

    made = Collector(Streams(opened, group="willbuy", consumer="collect"), tmp_path)
    collect(made, follow=True, every_s=0.0, stop=stop, on_outage=outages.append)
    opened.close()
    assert collected(tmp_path) == ["after", "before"]
    assert outages


def test_two_collectors_do_not_share_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(CollectError, match="another collector"), locked(tmp_path):
        pass


def test_what_another_format_says_stops_the_work_and_is_not_lost(client, streams, tmp_path):
    publish(client, "good")
    client.xadd(outcomes_key(0), {"id": "x", "session": b'{"format": 2}'})
    with pytest.raises(CollectError, match=r"entry 00:\d+-\d+: format 2"):
        run(streams, tmp_path)
    client.delete(outcomes_key(0))
    assert run(streams, tmp_path).sessions == 1


def test_a_damaged_file_in_the_folder_is_named(client, streams, tmp_path):
    publish(client, "good")
    streams.new(10)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"broken\.parquet"):
        run(streams, tmp_path)


def collected_from(url, folder, ca_file=None):
    """The sessions that `collect` finds there, after some were published."""
    folder.mkdir()
    opened = open_client(url, ca_file)
    try:
        publish(opened, *IDS)
        found = run(Streams(opened, group="willbuy", consumer="collect"), folder)
    finally:
        opened.close()
    assert found.sessions == len(IDS)
    return collected(folder)


@pytest.fixture
def valkey_binary():
    binary = find_binary("valkey-8.1")
    if binary is None:
        raise missing("valkey-8.1")
    return binary


def test_it_reads_a_cluster(valkey_binary, tmp_path):
    cluster = RedisCluster(valkey_binary, tmp_path / "cluster")
    try:
        cluster.start()
        assert collected_from(cluster.url, tmp_path / "collected") == sorted(IDS)
    finally:
        cluster.stop()


def test_it_finds_the_primary_by_sentinels_with_a_password(valkey_binary, tmp_path):
    servers = Sentinels(valkey_binary, tmp_path / "servers", sentinels=1, password="of&sentinels")
    try:
        servers.start()
        url = f"{servers.url}?sentinel_password=of%26sentinels"
        assert collected_from(url, tmp_path / "collected") == sorted(IDS)
    finally:
        servers.stop()


def test_it_logs_in_as_a_user_over_a_unix_socket(start_redis, tmp_path_factory, tmp_path):
    # A socket's path has at most 108 characters
    socket_path = tmp_path_factory.mktemp("s") / "redis.sock"
    users = ("--user", "shop", "on", ">se:cr@et", "~wb:*", "&*", "+@all", "--user", "default", "off")
    start_redis(options=("--unixsocket", str(socket_path), *users))
    with pytest.raises(RedisError):
        collected_from(f"unix://{socket_path}", tmp_path / "refused")
    assert collected_from(f"unix://shop:se%3Acr%40et@{socket_path}?db=1", tmp_path / "collected") == sorted(IDS)


def test_it_checks_certificates_by_the_ca_file(start_redis, tmp_path):
    server = start_redis()
    certificate = make_certificate(tmp_path)

    async def scenario():
        async with behind_tls(server, certificate) as port:
            url = f"rediss://127.0.0.1:{port}/0"
            with pytest.raises(RedisError):
                await asyncio.to_thread(collected_from, url, tmp_path / "refused")
            return await asyncio.to_thread(collected_from, url, tmp_path / "collected", certificate[0])

    assert asyncio.run(scenario()) == sorted(IDS)


def test_the_command_says_what_it_did(client, redis_server, tmp_path):
    publish(client, *IDS[:5])
    arguments = ["collect", "--redis-url", redis_server.url, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "5 sessions, 0 of them bought, 5 events in 1 new files" in result.output
    assert collected(tmp_path / "out") == IDS[:5]


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis+cluster://", "redis+sentinel://", "redis://host:port"])
def test_a_url_that_is_none_is_refused_without_repeating_it(url, tmp_path):
    result = CliRunner().invoke(cli, ["collect", "--redis-url", url, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "--redis-url: expected" in result.output
    assert "Traceback" not in result.output


def test_without_redis_the_command_ends_with_one_line(tmp_path):
    result = CliRunner().invoke(cli, ["collect", "--redis-url", "redis://127.0.0.1:1/0", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.strip().startswith("error: ")
    assert len(result.output.strip().splitlines()) == 1
