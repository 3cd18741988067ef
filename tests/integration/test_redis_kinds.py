"""The store on a cluster, behind sentinels, with passwords and over TLS: real servers, real fail-overs."""

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from itertools import count

import pytest
from conftest import missing
from msgspec.structs import replace
from support.records import a_record
from support.redis_servers import BINARIES, RedisServer, find_binary
from support.redis_topologies import RedisCluster, Sentinels, until
from support.tls import behind_tls, make_certificate

from app.errors import StoreUnavailableError
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.record_codec import Record
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event
from model.interventions.decide import Decision, Group

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

_versions = count(1)


def a_commit(session_id, expected=None):
    """The next commit of a session whose record is `expected`."""
    record = a_record(
        version=next(_versions).to_bytes(8, "big"),
        events=1 if expected is None else expected.events + 1,
        last_seen_ms=int(time.time() * 1000),
    )
    return Commit(session_id, expected and expected.version, record, (Event("page_view", 1),))


@asynccontextmanager
async def opened(url, *, wait_replicas=0, **options):
    chosen = ConnectionOptions(**({"timeout_s": 10.0, "open_s": 0.1} | options))
    store = RedisStore(url, session_idle_s=1800, options=chosen, wait_replicas=wait_replicas)
    try:
        yield store
    finally:
        await store.close()


def binary_of(name):
    binary = find_binary(name)
    if binary is None:
        raise missing(name)
    return binary


@pytest.fixture(params=sorted(BINARIES))
def cluster(request, tmp_path):
    started = RedisCluster(binary_of(request.param), tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(params=sorted(BINARIES))
def sentinels(request, tmp_path):
    started = Sentinels(binary_of(request.param), tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module", params=sorted(BINARIES))
def of_the_module(request, tmp_path_factory):
    started = RedisCluster(binary_of(request.param), tmp_path_factory.mktemp("cluster"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def shared_cluster(of_the_module):
    """An empty cluster, for tests whose nodes all live on. One that moves a slot has a session to itself."""
    for node in of_the_module.primaries:
        node.flush()
    return of_the_module


# For a store whose call is to be refused once its time is over.
SHORT_S = 1.0
SESSIONS = [f"s-{number}" for number in range(300)]


async def commit_until_done(store, commit):
    """What a caller does: again until it is accepted."""
    deadline = time.monotonic() + 30
    while True:
        (result,) = await store.commit([commit])
        if result is True:
            return
        assert isinstance(result, StoreUnavailableError)
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def eventually_loaded(store, session_id):
    """The record, once the store has found the server that has it."""
    deadline = time.monotonic() + 30
    while isinstance((found := await store.load([session_id]))[0], StoreUnavailableError):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return found[0]


async def test_a_batch_over_all_nodes_of_a_cluster_is_read_and_written(shared_cluster):
    cluster = shared_cluster
    async with opened(cluster.url) as store:
        await store.ping()
        commits = [a_commit(session_id) for session_id in SESSIONS]
        assert await store.commit(commits) == [True] * len(SESSIONS)
        assert await store.load(SESSIONS) == [commit.record for commit in commits]
        assert await store.load_histories(SESSIONS) == [[Event("page_view", 1)]] * len(SESSIONS)
        # The script's compare-and-set holds there as well
        assert await store.commit([a_commit(session_id) for session_id in SESSIONS]) == [False] * len(SESSIONS)
    for node in cluster.primaries:
        assert int(node.command("DBSIZE")[1:]) > 100


async def test_a_batch_makes_one_round_trip_to_each_node(shared_cluster):
    cluster = shared_cluster
    async with opened(cluster.url) as store:
        await store.commit([a_commit(session_id) for session_id in SESSIONS])
        sent = []
        for server in store._client._servers.values():  # noqa: SLF001 - round trips are counted where they begin
            original = server._send  # noqa: SLF001 - same

            async def counted(commands, wait_replicas, original=original):
                sent.append(len(commands))
                return await original(commands, wait_replicas)

            server._send = counted  # noqa: SLF001 - same
        await store.load(SESSIONS)
        assert len(sent) == 3
        assert sum(sent) == len(SESSIONS)
        sent.clear()
        await store.commit([a_commit(session_id) for session_id in SESSIONS])
        assert len(sent) == 3
        assert sum(sent) == len({shard_of(session_id) for session_id in SESSIONS})


async def test_a_slot_that_moves_while_it_is_used_loses_nothing(shared_cluster):
    cluster, session_id = shared_cluster, "s-1"
    slot = cluster.slot_of(session_id)
    source = cluster.owner_of(session_id)
    target = next(node for node in cluster.primaries if node is not source)
    async with opened(cluster.url) as store, opened(cluster.url, timeout_s=SHORT_S) as hasty:
        first = a_commit(session_id)
        await commit_until_done(store, first)
        assert await eventually_loaded(hasty, session_id) == first.record
        cluster.begin_to_move(slot, source, target)
        # The keys are still at the source, then some are moved, then all: reading works at each stage
        assert await store.load([session_id, "s-unknown"]) == [first.record, None]
        cluster.move_keys(slot, source, target, most=1)
        assert await store.load([session_id]) == [first.record]
        # A script cannot run on keys that are here and there: refused within the time, and wholly
        second = a_commit(session_id, first.record)
        (result,) = await hasty.commit([second])
        assert isinstance(result, StoreUnavailableError)
        assert await store.load_histories([session_id]) == [[Event("page_view", 1)]]
        cluster.move_keys(slot, source, target)
        assert await store.load([session_id]) == [first.record]
        cluster.end_the_move(slot, target)
        await commit_until_done(store, second)
        assert await store.load([session_id]) == [second.record]
        assert await store.load_histories([session_id]) == [[Event("page_view", 1)] * 2]


@pytest.mark.parametrize(
    ("kind_of_key", "session_id"),
    [("board", "s-2"), ("seen", "s-3"), ("h:s-4", "s-4"), ("decisions", "s-5")],
    ids=["board", "seen", "history", "decisions"],
)
async def test_a_commit_changes_nothing_while_one_of_its_keys_has_moved(shared_cluster, kind_of_key, session_id):
    """Whichever it is: the script could write the record before it comes to that key."""
    cluster = shared_cluster
    slot = cluster.slot_of(session_id)
    source = cluster.owner_of(session_id)
    target = next(node for node in cluster.primaries if node is not source)
    decision = Decision("voucher", Group.CONTROL, 0.5, 1, 1000)
    async with opened(cluster.url) as store, opened(cluster.url, timeout_s=SHORT_S) as hasty:
        first = replace(a_commit(session_id), decided=[decision])
        await commit_until_done(store, first)
        assert await eventually_loaded(hasty, session_id) == first.record
        cluster.begin_to_move(slot, source, target)
        cluster.move_key(f"wb:{{{shard_of(session_id):02x}}}:{kind_of_key}", source, target)
        second = replace(a_commit(session_id, first.record), decided=[decision])

        (result,) = await hasty.commit([second])

        assert isinstance(result, StoreUnavailableError)
        assert await store.load([session_id]) == [first.record]
        cluster.move_keys(slot, source, target)
        cluster.end_the_move(slot, target)
        await commit_until_done(store, second)
        assert await store.load([session_id]) == [second.record]


async def test_one_node_that_hangs_or_is_gone_fails_its_own_sessions_alone(cluster):
    async with opened(cluster.url, timeout_s=SHORT_S) as store:
        commits = {session_id: a_commit(session_id) for session_id in SESSIONS}
        assert await store.commit(list(commits.values())) == [True] * len(SESSIONS)
        lost = cluster.primaries[1]
        lost.pause()
        records = await store.load(SESSIONS)
        for session_id, record in zip(SESSIONS, records, strict=True):
            if cluster.owner_of(session_id) is lost:
                assert isinstance(record, StoreUnavailableError)
            else:
                assert record == commits[session_id].record
        await store.ping()
        lost.resume()
        deadline = time.monotonic() + 30
        while await store.load(SESSIONS) != [commits[session_id].record for session_id in SESSIONS]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", sorted(BINARIES))
async def test_a_replica_of_the_cluster_takes_over_from_a_primary_that_died(kind, tmp_path):
    cluster = RedisCluster(binary_of(kind), tmp_path, replicas=3)
    try:
        cluster.start()
        async with opened(cluster.url, wait_replicas=1) as store:
            commits = [a_commit(session_id) for session_id in SESSIONS]
            assert await store.commit(commits) == [True] * len(SESSIONS)
            cluster.primaries[0].kill()
            deadline = time.monotonic() + 30
            while await store.load(SESSIONS) != [commit.record for commit in commits]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
    finally:
        cluster.stop()


async def test_a_cluster_that_is_not_there_is_unavailable_and_found_once_it_is(cluster):
    for node in cluster.nodes:
        node.kill()
    async with opened(cluster.url) as store:
        with pytest.raises(StoreUnavailableError):
            await store.ping()
        assert all(isinstance(record, StoreUnavailableError) for record in await store.load(SESSIONS))
        for node in cluster.nodes:
            node.start()
        await commit_until_done(store, a_commit("s-1"))


async def test_sentinels_lead_to_the_new_primary_when_the_old_one_died(sentinels):
    async with opened(sentinels.url, wait_replicas=1) as store:
        first = a_commit("s-1")
        await commit_until_done(store, first)
        sentinels.primary.kill()
        until(lambda: sentinels.named_port() == sentinels.replica.port)
        assert await eventually_loaded(store, "s-1") == first.record
    async with opened(sentinels.url) as store:
        await commit_until_done(store, a_commit("s-1", first.record))


async def test_a_demoted_primary_that_answers_read_only_is_left_for_the_new_one(sentinels):
    async with opened(sentinels.url) as store:
        first = a_commit("s-1")
        await commit_until_done(store, first)
        sentinels.fail_over()
        until(lambda: sentinels.named_port() == sentinels.replica.port)
        # The sentinels would demote the old primary, too, ten seconds later
        sentinels.primary.command("REPLICAOF", "127.0.0.1", str(sentinels.replica.port))
        # It is alive and holds our connections, but takes no writes
        until(lambda: b"role:slave" in sentinels.primary.command("INFO", "replication"))
        await commit_until_done(store, a_commit("s-1", first.record))
        assert b"role:master" in sentinels.replica.command("INFO", "replication")
        assert int(sentinels.replica.command("DBSIZE")[1:]) > 0


@pytest.mark.parametrize("fate", ["gone", "hangs"])
async def test_a_sentinel_that_does_not_answer_leaves_time_for_the_next_one(tmp_path, fate):
    started = Sentinels(binary_of("valkey-8.1"), tmp_path, sentinels=1)
    try:
        started.start()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            if fate == "gone":
                silent.close()
            (alive,) = started.sentinels
            url = f"redis+sentinel://127.0.0.1:{port},127.0.0.1:{alive.port}/shop"
            async with opened(url, timeout_s=SHORT_S) as store:
                await commit_until_done(store, a_commit("s-1"))
    finally:
        started.stop()


async def test_sentinels_have_a_password_of_their_own(tmp_path):
    started = Sentinels(binary_of("valkey-8.1"), tmp_path, sentinels=1, password="of-the-sentinels")
    try:
        started.start()
        async with opened(started.url) as store:
            with pytest.raises(StoreUnavailableError):
                await store.ping()
        async with opened(f"{started.url}?sentinel_password=of-the-sentinels") as store:
            await commit_until_done(store, a_commit("s-1"))
    finally:
        started.stop()


async def test_a_single_server_that_became_a_replica_is_connected_to_anew(tmp_path, start_redis):
    """As behind a name or a proxy that leads to another server after a fail-over."""
    server, other = start_redis(), start_redis()
    async with opened(server.url) as store:
        await commit_until_done(store, a_commit("s-1"))
        server.command("REPLICAOF", "127.0.0.1", str(other.port))
        (result,) = await store.commit([a_commit("s-2")])
        assert isinstance(result, StoreUnavailableError)
        server.command("REPLICAOF", "NO", "ONE")
        await commit_until_done(store, a_commit("s-2"))


async def test_a_commit_that_too_few_replicas_have_is_not_acknowledged(start_redis):
    server = start_redis()
    async with opened(server.url, wait_replicas=1, timeout_s=0.3) as store:
        (result,) = await store.commit([a_commit("s-1")])
        assert isinstance(result, StoreUnavailableError)


async def test_user_and_password_are_needed_and_used(start_redis):
    server = start_redis(options=("--requirepass", "se:cr@et"))
    async with opened(server.url) as store:
        with pytest.raises(StoreUnavailableError):
            await store.ping()
    async with opened(server.url.replace("//", "//default:se%3Acr%40et@")) as store:
        await commit_until_done(store, a_commit("s-1"))


@pytest.fixture
def certificate(tmp_path):
    return make_certificate(tmp_path)


async def test_tls_is_spoken_and_the_certificate_is_checked(start_redis, certificate):
    server = start_redis()
    async with behind_tls(server, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        async with opened(url, ca_file=certificate[0]) as store:
            await commit_until_done(store, a_commit("s-1"))
            assert isinstance((await store.load(["s-1"]))[0], Record)
        # An authority that nobody trusts is no authority
        async with opened(url) as store:
            with pytest.raises(StoreUnavailableError):
                await store.ping()


async def test_two_databases_of_a_server_do_not_meet(start_redis):
    server = start_redis()
    async with opened(server.url) as one, opened(server.url.replace("/0", "/1")) as other:
        await commit_until_done(one, a_commit("s-1"))
        assert await other.load(["s-1"]) == [None]


def test_servers_of_a_test_keep_their_port(tmp_path):
    server = RedisServer(binary_of("valkey-8.1"), tmp_path)
    port = server.port
    server.start()
    server.kill()
    server.start()
    server.stop()
    assert server.port == port
