"""Where the embedded server of a running service is found, and by whom."""

import os

import pytest

from model.own_redis import announced, running_url


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"willbuy-{os.getuid()}"


def test_a_server_is_found_while_it_runs(folder):
    assert running_url() is None
    with announced("unix:///one"):
        assert running_url() == "unix:///one"
        with announced("unix:///two"):
            assert running_url() == "unix:///two"
        assert running_url() is None
    assert running_url() is None
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_end_of_another_server_changes_nothing():
    with announced("unix:///one"):
        later = announced("unix:///two")
        later.__enter__()
    assert running_url() == "unix:///two"
    later.__exit__(None, None, None)


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_folder_that_others_may_use_is_not_trusted(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    (folder / "redis-url").write_text("redis://of.another:6379/0")
    assert running_url() is None
    with announced("unix:///one"):
        assert running_url() is None


def test_without_a_folder_the_service_runs_all_the_same(folder):
    folder.write_text("a file")
    with announced("unix:///one"):
        assert running_url() is None
