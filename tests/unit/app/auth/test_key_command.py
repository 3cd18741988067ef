"""`willbuy key`: new, list and revoke."""

import re
import tomllib

import pytest
from typer.testing import CliRunner

from app.auth.access import Access
from app.auth.cli import cli
from app.auth.keys import MOST_KEYS, read_keys
from app.auth.scopes import Scope


def run(*arguments):
    return CliRunner().invoke(cli, ["new", *map(str, arguments)])


def test_a_key_is_printed_once_with_the_entry_that_lets_it_in(tmp_path) -> None:
    done = run("--name", "shop", "--scope", "events:write", "--scope", "sessions:read", "--events-per-s", 50)
    assert done.exit_code == 0
    (key,) = re.findall(r"^wb_\S+$", done.output, flags=re.MULTILINE)
    path = tmp_path / "keys.toml"
    path.write_text(done.output[done.output.index("[[keys]]") :])
    (entry,) = read_keys(path)
    assert (entry.name, entry.events_per_s) == ("shop", 50)
    assert Access([entry]).check([(b"x-api-key", key.encode())], Scope.SESSIONS_READ) == entry
    # And the entry does not give the key away
    assert key not in path.read_text()


def test_entries_are_added_to_a_file_and_the_key_alone_is_printed(tmp_path) -> None:
    path = tmp_path / "keys.toml"
    keys = [run("--name", f"shop-{at}", "--scope", "events:write", "--file", path).output.strip() for at in range(3)]
    entries = read_keys(path)
    assert [entry.name for entry in entries] == ["shop-0", "shop-1", "shop-2"]
    access = Access(entries)
    for key, entry in zip(keys, entries, strict=True):
        assert access.check([(b"x-api-key", key.encode())], Scope.EVENTS_WRITE) == entry
    assert list(tmp_path.iterdir()) == [path]


def test_who_may_read_the_file_stays_as_it_is(tmp_path) -> None:
    path = tmp_path / "keys.toml"
    run("--name", "shop", "--scope", "events:write", "--file", path)
    assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o640)
    run("--name", "desk", "--scope", "sessions:read", "--file", path)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a b", "--scope", "events:write"], "name"),
        (["--name", "shop", "--scope", "events:read"], "events:write"),
        (["--name", "shop"], "--scope"),
        (["--name", "shop", "--scope", "events:write", "--events-per-s", "0"], "events_per_s"),
        (["--name", "shop", "--scope", "events:write", "--file", "no/such/folder/keys.toml"], "No such file"),
    ],
)
def test_what_makes_no_key_is_said_in_a_line(arguments, message) -> None:
    done = run(*arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output
    assert "wb_" not in done.output


def test_a_file_that_is_none_of_keys_is_left_as_it_is(tmp_path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[train]\nname = "other"\n')
    done = run("--name", "shop", "--scope", "events:write", "--file", path)
    assert done.exit_code == 1
    assert tomllib.loads(path.read_text()) == {"train": {"name": "other"}}


def test_a_full_file_is_left_as_it_is(tmp_path) -> None:
    path = tmp_path / "keys.toml"
    entry = '[[keys]]\nname = "shop"\nscopes = ["events:write"]\nsha256 = "{:064x}"\n'
    path.write_text("".join(map(entry.format, range(MOST_KEYS))))
    done = run("--name", "shop", "--scope", "events:write", "--file", path)
    assert done.exit_code == 1
    assert "at most 64" in done.output
    assert len(read_keys(path)) == MOST_KEYS


def key_file(tmp_path, *names):
    path = tmp_path / "keys.toml"
    for name in names:
        assert run("--name", name, "--scope", "events:write", "--events-per-s", 50, "--file", path).exit_code == 0
    return path


def other(*arguments, **environment):
    return CliRunner().invoke(cli, [*map(str, arguments)], env=environment)


def test_keys_are_listed_without_anything_to_get_in_with(tmp_path) -> None:
    path = key_file(tmp_path, "shop", "desk")
    run("--name", "ops", "--scope", "model:admin", "--scope", "sessions:read", "--file", path)
    done = other("list", WILLBUY_API_KEYS_FILE=str(path))
    assert done.exit_code == 0
    heading, *lines = done.output.splitlines()
    assert heading.split() == ["name", "scopes", "events/s", "sha256"]
    entries = read_keys(path)
    assert [line.split()[0] for line in lines] == ["shop", "desk", "ops"]
    assert [line.split()[-1] for line in lines] == [entry.sha256[:12] for entry in entries]
    assert lines[0].split()[1:3] == ["events:write", "50"]
    assert "model:admin, sessions:read" in lines[2]


def test_a_revoked_key_is_gone_from_the_file_and_the_others_stay(tmp_path) -> None:
    path = key_file(tmp_path, "shop", "desk", "shop")
    path.chmod(0o640)
    first, desk, second = read_keys(path)
    # One of two keys of a user, by its hash
    assert other("revoke", "--file", path, "--sha256", second.sha256[:8].upper()).exit_code == 0
    assert read_keys(path) == (first, desk)
    # And all of a user
    assert "1 of 2" in other("revoke", "--file", path, "--name", "shop").output
    assert read_keys(path) == (desk,)
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "nobody"], "no key has the name 'nobody'; it has desk, shop"),
        (["--sha256", "zz"], "no key has a hash that begins with 'zz'"),
        (["--sha256", ""], "no key has a hash"),
        ([], "either --name or --sha256"),
        (["--name", "shop", "--sha256", "00"], "either --name or --sha256"),
    ],
)
def test_a_key_that_cannot_be_revoked_is_said_and_the_file_stays(tmp_path, arguments, message) -> None:
    path = key_file(tmp_path, "shop", "desk")
    before = path.read_text()
    done = other("revoke", "--file", path, *arguments)
    assert done.exit_code == 1
    assert message in done.output
    assert path.read_text() == before


def test_the_last_key_cannot_be_revoked_as_a_service_needs_one(tmp_path) -> None:
    path = key_file(tmp_path, "shop")
    done = other("revoke", "--file", path, "--name", "shop")
    assert (done.exit_code, len(read_keys(path))) == (1, 1)
    assert "make another" in done.output
    assert "error: " in other("list", "--file", tmp_path / "missing.toml").output


def test_a_shared_secret_stays_when_another_key_is_added_and_is_not_listed(tmp_path) -> None:
    path = tmp_path / "keys.toml"
    run("--name", "segment", "--scope", "events:write", "--file", path)
    secret = 'a "quoted" \\ secret'
    path.write_text(f"{path.read_text()}segment_secret = '{secret}'\n")
    run("--name", "desk", "--scope", "sessions:read", "--file", path)
    run("--name", "third", "--scope", "sessions:read", "--file", path)
    assert CliRunner().invoke(cli, ["revoke", "--name", "desk", "--file", str(path)]).exit_code == 0
    assert [entry.segment_secret for entry in read_keys(path)] == [secret, None]
    assert secret not in CliRunner().invoke(cli, ["list", "--file", str(path)]).output
    assert secret not in repr(read_keys(path))
