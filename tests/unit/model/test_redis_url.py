import pytest

from model.redis_url import mask_redis_url, parse_redis_url


def test_a_server_with_user_password_and_database():
    address = parse_redis_url("rediss://shop:p%40ss@cache:6380/2")
    assert (address.kind, address.tls, address.endpoints) == ("single", True, (("cache", 6380),))
    assert (address.username, address.password, address.database) == ("shop", "p@ss", 2)


def test_a_cluster_by_some_of_its_nodes():
    address = parse_redis_url("redis+cluster://:secret@one:7000,two,[::1]:7002")
    assert (address.kind, address.tls) == ("cluster", False)
    assert address.endpoints == (("one", 7000), ("two", 6379), ("::1", 7002))
    assert (address.username, address.password) == (None, "secret")


def test_sentinels_and_the_name_of_their_service():
    address = parse_redis_url("rediss+sentinel://one,two:26380/shop/3")
    assert (address.kind, address.tls, address.service, address.database) == ("sentinel", True, "shop", 3)
    assert address.endpoints == (("one", 26379), ("two", 26380))


def test_sentinels_have_a_user_and_a_password_of_their_own():
    address = parse_redis_url("redis+sentinel://one/shop?sentinel_username=watch&sentinel_password=p%40s%26s+1")
    assert (address.sentinel_username, address.sentinel_password) == ("watch", "p@s&s+1")
    assert (address.username, address.password) == (None, None)
    without = parse_redis_url("redis+sentinel://shop:secret@one/shop")
    assert (without.sentinel_username, without.sentinel_password) == (None, None)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://one,two", "one host"),
        ("redis+cluster://one/1", "database"),
        ("redis+cluster://", "host"),
        ("redis+cluster://one,,two", "host"),
        ("redis+cluster://one?ssl=true", "options"),
        ("redis://one?password=secret", "options"),
        ("unix:///path?password=secret", "option"),
        ("unix:///path?db=one", "option"),
        ("redis+sentinel://one:26379", "service"),
        ("redis+sentinel://one/shop?password=secret", "sentinel_password"),
        ("redis+sentinel://one/shop?sentinel_password=a&sentinel_password=secret", "each once"),
        ("redis+sentinel://one/shop/three", "database number"),
        ("redis+cluster://one:seventy", "ort"),
        ("unix+cluster:///path", "start with"),
        ("redis+sentinel://one/shop?db=1", "options"),
        ("redis+cluster://one?sentinel_password=a", "options"),
        ("redis://[one", "URL"),
    ],
)
def test_what_makes_no_sense_is_refused(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_redis_url(url)
    assert "secret" not in str(caught.value)


def test_no_password_is_printed():
    url = "redis+sentinel://shop:secret@one,two/service?sentinel_password=another-secret"
    assert mask_redis_url(url) == "redis+sentinel://shop:***@one,two/service"
    assert "secret" not in repr(parse_redis_url(url))


def test_a_socket_and_a_database():
    address = parse_redis_url("unix://:secret@/run/my%20redis.sock?db=3")
    assert (address.socket_path, address.database, address.password) == ("/run/my redis.sock", 3, "secret")
    assert parse_redis_url("unix:///run/redis.sock").database == 0


@pytest.mark.parametrize(
    "url",
    [
        "redis://shop:secret/x@host",
        "redis://shop:secret",
        "redis://shop:se\u2100cret@host",
        "secret://host",
        "redis+cluster://:secret@one:secret,two",
        "redis+sentinel://one/shop?secret=secret",
        "redis://host/secret",
        "unix:///path?db=secret",
    ],
)
def test_an_error_repeats_nothing_of_the_url(url):
    with pytest.raises(ValueError, match=r"^must ") as raised:
        parse_redis_url(url)
    assert "secret" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
