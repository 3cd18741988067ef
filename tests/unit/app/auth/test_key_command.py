"""`willbuy key new`."""

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
