"""What is kept of keys, and what lists of them may hold."""

import pytest
from support.keys import make_key, toml, write_keys

from app.auth.access import Access
from app.auth.keys import MOST_KEYS, AccessError, all_different, digest_of, new_key, read_keys
from app.auth.scopes import Scope
from app.errors import ForbiddenError, UnauthorizedError

DIGEST = "ab" * 32
ENTRY = {"name": "shop", "scopes": ["events:write"], "sha256": DIGEST}


def test_no_two_keys_are_alike_and_each_has_256_random_bits() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    # 43 characters of six bits, after what says that it is one of ours.
    assert all(key.startswith("wb_") and len(key) == 46 for key in keys)


def test_what_is_kept_of_a_key_is_its_hash_and_not_the_key(tmp_path) -> None:
    made = make_key("events:write")
    path = write_keys(tmp_path / "keys.toml", made)
    assert read_keys(path) == (made.entry,)
    assert made.key not in path.read_text()
    assert made.key not in repr(made.entry)


def keys_of(tmp_path, entries):
    path = tmp_path / "keys.toml"
    path.write_text(f"keys = {toml(entries)}\n")
    return read_keys(path)


def test_a_key_has_scopes_and_a_limit(tmp_path) -> None:
    (key,) = keys_of(tmp_path, [ENTRY | {"scopes": ["sessions:read", "model:admin"], "events_per_s": 5}])
    assert (key.name, key.scopes, key.events_per_s) == ("shop", [Scope.SESSIONS_READ, Scope.MODEL_ADMIN], 5)


def test_the_longest_name_and_the_largest_limit_are_taken(tmp_path) -> None:
    (key,) = keys_of(tmp_path, [ENTRY | {"name": "n" * 64, "events_per_s": 1_000_000}])
    assert (len(key.name), key.events_per_s) == (64, 1_000_000)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "expected at least one key"),
        ({}, r"Expected `array`, got `object`"),
        ([ENTRY | {"sha256": "secret-key-pasted-here"}], r"regex .* at `\$\[0\].sha256`"),
        ([{"name": "shop", "scopes": ["events:write"]}], r"missing required field `sha256` - at `\$\[0\]`"),
        ([ENTRY | {"scopes": []}], r"length >= 1 - at `\$\[0\].scopes`"),
        ([ENTRY | {"scopes": ["events"]}], "scopes are events:write, sessions:read, interventions:admin, model:admin"),
        ([ENTRY | {"scope": "events:write"}], "unknown field `scope`"),
        ([ENTRY | {"name": "a b"}], r"at `\$\[0\].name`"),
        ([ENTRY | {"name": "n" * 65}], r"at `\$\[0\].name`"),
        ([ENTRY | {"events_per_s": 1_000_001}], r"at `\$\[0\].events_per_s`"),
        ([ENTRY | {"events_per_s": 0}], r"at `\$\[0\].events_per_s`"),
        ([ENTRY, ENTRY | {"name": "other", "sha256": DIGEST.upper()}], "key of 'other' is there twice"),
        ([ENTRY | {"sha256": DIGEST.upper()}, ENTRY | {"name": "other"}], "key of 'other' is there twice"),
    ],
)
def test_a_wrong_entry_is_one_line_that_names_it(tmp_path, entries, message) -> None:
    with pytest.raises(AccessError, match=message) as caught:
        keys_of(tmp_path, entries)
    assert "\n" not in str(caught.value)
    assert "pasted" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[keys]\n", "expected TOML"),
        ("", r"expected \[\[keys\]\] entries"),
        (
            f'[[keys]]\nname="shop"\nscopes=["events:write"]\nsha256="{DIGEST}"\n[limits]\n',
            "nothing else, not 'limits'",
        ),
        ('[[key]]\nname = "shop"\n', r"expected \[\[keys\]\] entries and nothing else, not 'key'"),
        ("keys = []", "expected at least one key"),
        ("\udcff", "expected UTF-8"),
        ("keys = " + "[" * 100_000, "expected TOML"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused_by_its_name(tmp_path, text, message) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(AccessError, match=message) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path) -> None:
    with pytest.raises(AccessError, match=r"missing\.toml: No such file"):
        read_keys(tmp_path / "missing.toml")


def test_more_keys_than_each_request_should_be_compared_with_are_refused() -> None:
    keys = [make_key("events:write").entry for _ in range(MOST_KEYS + 1)]
    assert all_different(keys[:-1]) == tuple(keys[:-1])
    with pytest.raises(AccessError, match="65 API keys: expected at most 64"):
        all_different(keys)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer KEY")],
        [(b"authorization", b"bearer   KEY ")],
        [(b"x-api-key", b"KEY")],
        [(b"authorization", b"Basic c2hvcDpzZWNyZXQ="), (b"x-api-key", b"KEY")],
        [(b"x-api-key", b"of somebody else"), (b"authorization", b"Bearer KEY")],
    ],
)
def test_a_key_is_found_where_callers_put_it(headers) -> None:
    made = make_key("events:write")
    access = Access([make_key("events:write").entry, made.entry, make_key("events:write").entry])
    sent = [(name, value.replace(b"KEY", made.key.encode())) for name, value in headers]
    assert access.check(sent, Scope.EVENTS_WRITE) == made.entry


@pytest.mark.parametrize(
    "headers",
    [[], [(b"authorization", b"Basic c2hvcDpzZWNyZXQ=")], [(b"x-other", b"KEY")], [(b"authorization", b"KEY")]],
)
def test_who_sends_no_key_is_told_how(headers) -> None:
    with pytest.raises(UnauthorizedError, match="Authorization: Bearer KEY") as caught:
        Access([make_key("events:write").entry]).check(headers, Scope.EVENTS_WRITE)
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer realm="willbuy"'}


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + "x", str.swapcase, lambda _: ""])
def test_a_key_that_is_nearly_right_is_not_known(change) -> None:
    made = make_key("events:write")
    sent = [(b"authorization", f"Bearer {change(made.key)}".encode())]
    with pytest.raises(UnauthorizedError, match="does not know") as caught:
        Access([made.entry]).check(sent, Scope.EVENTS_WRITE)
    assert 'error="invalid_token"' in caught.value.headers["WWW-Authenticate"]


def test_the_hash_of_a_key_is_no_key() -> None:
    made = make_key("events:write")
    for sent in (made.entry.sha256.encode(), made.entry.digest, digest_of(made.entry.digest)):
        with pytest.raises(UnauthorizedError):
            Access([made.entry]).check([(b"x-api-key", sent)], Scope.EVENTS_WRITE)


def test_a_scope_that_a_key_has_not_is_named() -> None:
    made = make_key("events:write", "sessions:read")
    access = Access([made.entry])
    sent = [(b"x-api-key", made.key.encode())]
    assert access.check(sent, Scope.SESSIONS_READ) == made.entry
    with pytest.raises(ForbiddenError, match="model:admin") as caught:
        access.check(sent, Scope.MODEL_ADMIN)
    assert 'error="insufficient_scope", scope="model:admin"' in caught.value.headers["WWW-Authenticate"]


def test_keys_are_replaced_as_a_whole() -> None:
    old, new = make_key("events:write"), make_key("events:write")
    access = Access([old.entry])
    assert not access.replace([old.entry])
    assert access.replace([new.entry])
    assert access.check([(b"x-api-key", new.key.encode())], Scope.EVENTS_WRITE) == new.entry
    with pytest.raises(UnauthorizedError):
        access.check([(b"x-api-key", old.key.encode())], Scope.EVENTS_WRITE)
    assert access.knows(new.entry)
    assert not access.knows(old.entry)
