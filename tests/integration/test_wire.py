"""Connections to a real server, on the event loop that the service runs on."""

import asyncio

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from app.store.redis.cluster import Command
from app.store.redis.connection import ConnectionOptions, open_link
from app.store.redis.wire import connect


def on_uvloop(scenario):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(scenario)


def endpoint_of(server):
    host, _, port = server.url.removeprefix("redis://").partition("/")[0].partition(":")
    return host, int(port)


def test_a_connection_that_the_server_just_closed_is_replaced_unnoticed(redis_server):
    # uvloop raises RuntimeError when a closed transport is written to before the loop has told that it was lost; the
    # service answered 500 then.
    async def scenario():
        link = open_link(redis_server.url, ConnectionOptions(timeout_s=10.0))
        killer = Redis.from_url(redis_server.url)
        try:
            for _ in range(50):
                assert await link.ping() is None
                for client in await killer.client_list():
                    if client["id"] != str(await killer.client_id()):
                        await killer.client_kill_filter(_id=client["id"])
                replies = await link.execute([Command(0, ("PING",))])
                assert replies == [b"PONG"]
        finally:
            await killer.aclose()
            await link.close()

    on_uvloop(scenario())


def test_a_transport_that_was_closed_under_it_is_an_error_of_the_connection(redis_server):
    async def scenario():
        connection = await connect(endpoint_of(redis_server))
        transport = connection._transport
        assert transport is not None
        transport.abort()
        assert not connection.is_open
        with pytest.raises(RedisConnectionError):
            await connection.round_trip([("PING",)])

    on_uvloop(scenario())


def test_errors_stand_in_their_replies_places(redis_server):
    async def scenario():
        connection = await connect(endpoint_of(redis_server))
        replies = await connection.round_trip([("PING",), ("EVALSHA", "0" * 40, 0), ("NO", "SUCH"), ("PING",)])
        connection.close()
        return replies

    first, unknown, refused, last = on_uvloop(scenario())
    assert (first, last) == (b"PONG", b"PONG")
    assert isinstance(unknown, NoScriptError)
    assert isinstance(refused, ResponseError)


def test_who_gives_up_closes_the_connection_so_that_nobody_gets_a_late_reply(redis_server):
    async def scenario():
        connection = await connect(endpoint_of(redis_server))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.round_trip([("BLPOP", "nothing", 0)])
        assert not connection.is_open

    on_uvloop(scenario())
