"""TLS to a cluster, to sentinels and the primary they name, and to a server that asks for client certificates."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from conftest import missing
from integration.test_redis_kinds import a_commit, commit_until_done, opened
from support.redis_servers import find_binary
from support.redis_topologies import RedisCluster, Sentinels
from support.tls import behind_tls, make_certificate, tls_or_plain

from app.errors import StoreUnavailableError
from training.collect.connection import open_client

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def certificate(tmp_path):
    return make_certificate(tmp_path)


@pytest.fixture
def binary():
    found = find_binary("valkey-8.1")
    if found is None:
        raise missing("valkey-8.1")
    return found


async def refuses_strangers(url, **files):
    async with opened(url, **files) as store:
        with pytest.raises(StoreUnavailableError):
            await store.ping()


async def serves(url, ca_file, **files):
    """The service and `willbuy collect` reach the server."""
    sessions = [f"s-{number}" for number in range(50)]
    async with opened(url, ca_file=ca_file, **files) as store:
        await store.ping()
        for session_id in sessions:
            await commit_until_done(store, a_commit(session_id))
        assert [record.events for record in await store.load(sessions)] == [1] * len(sessions)
    client = await asyncio.to_thread(open_client, url, ca_file, *files.values())
    try:
        assert await asyncio.to_thread(client.ping)
    finally:
        await asyncio.to_thread(client.close)


async def test_all_nodes_of_a_cluster_are_reached_over_tls(binary, certificate, tmp_path):
    cluster = RedisCluster(binary, tmp_path / "cluster")
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(behind_tls(node, certificate)) for node in cluster.nodes]
        cluster.announce(ports)
        try:
            await asyncio.to_thread(cluster.start)
            url = "rediss+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports[:2])
            await serves(url, certificate[0])
            assert all(int(node.command("DBSIZE")[1:]) > 0 for node in cluster.nodes)
            await refuses_strangers(url)
        finally:
            cluster.stop()


async def test_sentinels_and_the_primary_they_name_are_reached_over_tls(binary, certificate, tmp_path):
    servers = Sentinels(binary, tmp_path / "sentinels", sentinels=1)
    async with AsyncExitStack() as stack:
        servers.sentinels[0].watch(await stack.enter_async_context(tls_or_plain(servers.primary, certificate)))
        port = await stack.enter_async_context(behind_tls(servers.sentinels[0], certificate))
        try:
            await asyncio.to_thread(servers.start)
            url = f"rediss+sentinel://127.0.0.1:{port}/shop"
            await serves(url, certificate[0])
            await refuses_strangers(url)
        finally:
            servers.stop()


async def test_a_server_may_ask_for_a_client_certificate(start_redis, certificate, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = make_certificate(tmp_path / "other")
    async with behind_tls(start_redis(), certificate, clients=certificate[0]) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        await serves(url, certificate[0], cert_file=certificate[0], key_file=certificate[1])
        await refuses_strangers(url, ca_file=certificate[0])
        await refuses_strangers(url, ca_file=certificate[0], cert_file=stranger[0], key_file=stranger[1])
