import os
import subprocess
import traceback
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

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


# Words of a secret between the characters that a URL gives a meaning to; of letters that no message has in a row.
_WORDS = st.text("QXZJKVWY", min_size=4, max_size=8)
_SPECIAL = st.text("#/?@:%[] \t&=+,;", min_size=1, max_size=3)
_SECRETS = st.lists(st.tuples(_WORDS, _SPECIAL), min_size=1, max_size=3).flatmap(
    lambda parts: _WORDS.map(lambda last: ([*(word for word, _ in parts), last], "".join(map("".join, parts)) + last))
)
_FORMS = (
    "redis://shop:{}@cache:6379/0",
    "rediss://:{}@cache",
    "redis://{}@cache",
    "redis://shop:{}@[::1]:6379/2",
    "redis+cluster://shop:{}@one:7000,two:7001",
    "rediss+cluster://:{}@one,two/0",
    "redis+sentinel://shop:{}@one:26379,two/master/1",
    "rediss+sentinel://one/master?sentinel_username=watch&sentinel_password={}",
    "unix://shop:{}@/run/redis.sock?db=1",
)


def pieces(words):
    """Return every piece of four characters of the words."""
    return {word[start : start + 4] for word in words for start in range(len(word) - 3)}


def everything_of(error):
    """Return the text of an exception and of all exceptions behind it, shown or hidden."""
    texts, pending = [], [error]
    while pending:
        one = pending.pop()
        texts += [str(one), repr(one), *traceback.format_exception_only(one)]
        pending += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(texts)


@given(secret=_SECRETS, form=st.sampled_from(_FORMS))
def test_no_piece_of_a_password_gets_into_an_error_or_a_log(secret, form):
    words, password = secret
    # With a colon, what is before it is a user's name.
    assume(":" not in password or not form.partition("{}")[0].endswith("//"))
    url = form.format(password)
    try:
        parse_redis_url(url)
    except ValueError as exc:
        said = everything_of(exc)
    else:
        said = mask_redis_url(url)
    assert not [piece for piece in pieces(words) if piece in said]


@given(secret=_SECRETS, form=st.sampled_from(_FORMS))
def test_a_percent_encoded_password_is_read_whatever_it_contains(secret, form):
    _, password = secret
    address = parse_redis_url(form.format(quote(password, safe="")))
    assert password in {address.password, address.sentinel_password, address.username}


@pytest.mark.parametrize(
    ("form", "password"),
    [
        (form, password)
        for form in _FORMS
        for password in ("s3cretA#rest", "s3cretA/rest", "s3cretA?rest", "1234#s3cretA", "s3cr[etA")
        # An option may contain the others.
        if "sentinel_password" not in form or "#" in password
    ],
)
def test_a_password_that_ends_the_host_part_has_to_be_encoded(form, password):
    with pytest.raises(ValueError, match="percent-encoded"):
        parse_redis_url(form.format(password))


@pytest.mark.slow
@pytest.mark.parametrize("form", [_FORMS[0], _FORMS[4], _FORMS[7]])
@pytest.mark.parametrize("command", [("serve", "--artifact", "model.pt"), ("collect",), ("serve", "--help")])
def test_the_commands_print_nothing_of_it(form, command, warm_commands, tmp_path):
    url = form.format("s3cretA#rest/Words?More")
    environment = os.environ | {"WILLBUY_REDIS_URL": url, "WILLBUY_OPEN_ACCESS": "1"}
    if command == ("collect",):
        command = ("collect", str(tmp_path / "sessions"))
    run = subprocess.run(
        [warm_commands / "willbuy", *command], env=environment, capture_output=True, text=True, check=False
    )
    said = run.stdout + run.stderr
    assert not [piece for piece in pieces(["s3cretA", "rest", "Words", "More"]) if piece in said]
    if "--help" not in command:
        assert run.returncode != 0
        assert "Traceback" not in said
