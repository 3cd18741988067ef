"""Round trips to a real server, on the event loop that the service runs on."""

import asyncio

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from app.store.redis.cluster import Command
from app.store.redis.connection import ConnectionOptions, open_client

PING = Command(0, ("PING",))


def on_uvloop(server, scenario):
    """Run the scenario with a client of the server."""

    async def with_client():
        client = open_client(server.url, ConnectionOptions(timeout_s=10.0))
        try:
            return await scenario(client)
        finally:
            await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(with_client())


def idle_connections(client):
    return client._server._idle  # noqa: SLF001 - no caller sees which connection answers


def test_a_connection_that_the_server_just_closed_is_replaced_unnoticed(redis_server):
    # uvloop raises RuntimeError when a closed transport is written to before the loop has told that it was lost; the
    # service answered 500 then.
    async def scenario(client):
        killer = Redis.from_url(redis_server.url)
        try:
            for _ in range(50):
                assert await client.ping() is None
                for other in await killer.client_list():
                    if other["id"] != str(await killer.client_id()):
                        await killer.client_kill_filter(_id=other["id"])
                assert await client.execute([PING]) == [b"PONG"]
        finally:
            await killer.aclose()

    on_uvloop(redis_server, scenario)


def test_a_transport_that_was_closed_under_it_is_replaced_unnoticed(redis_server):
    async def scenario(client):
        assert await client.ping() is None
        (connection,) = idle_connections(client)
        connection._writer.transport.abort()  # noqa: SLF001 - as if the network had closed it
        assert await client.execute([PING]) == [b"PONG"]
        assert idle_connections(client) != [connection]

    on_uvloop(redis_server, scenario)


def test_errors_stand_in_their_replies_places(redis_server):
    async def scenario(client):
        commands = [("PING",), ("EVALSHA", "0" * 40, 0), ("NO", "SUCH"), ("PING",)]
        return await client.execute([Command(0, arguments) for arguments in commands])

    first, unknown, refused, last = on_uvloop(redis_server, scenario)
    assert (first, last) == (b"PONG", b"PONG")
    assert isinstance(unknown, NoScriptError)
    assert isinstance(refused, ResponseError)


def test_who_gives_up_closes_the_connection_so_that_nobody_gets_a_late_reply(redis_server):
    async def scenario(client):
        assert await client.ping() is None
        (connection,) = idle_connections(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.execute([Command(0, ("BLPOP", "nothing", 0))])
        assert not connection.is_connected
        assert idle_connections(client) == []
        assert await client.execute([PING]) == [b"PONG"]

    on_uvloop(redis_server, scenario)


def test_a_reply_that_nobody_asked_for_is_given_to_nobody(redis_server):
    async def scenario(client):
        assert await client.ping() is None
        (connection,) = idle_connections(client)
        await connection.send_command("ECHO", "late")
        while not await connection.can_read():  # noqa: ASYNC110 - redis-py has no event for data
            await asyncio.sleep(0)
        assert await client.execute([PING]) == [b"PONG"]
        assert connection not in idle_connections(client)

    on_uvloop(redis_server, scenario)
