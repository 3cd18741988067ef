import pytest

from app.halves import Halves


def after(steps, *, items=64, times=200):
    halves = Halves()
    for _ in range(times):
        halves.observe(items, step_s=0.001, commit_s=0.001 * steps)
    return halves


@pytest.mark.parametrize(("steps", "parts"), [(0.2, 1), (1.2, 1), (2.0, 2), (30.0, 2)])
def test_commits_that_take_long_are_halved(steps, parts):
    assert len(after(steps).of(range(64))) == parts


@pytest.mark.parametrize("items", [1, 31, 32, 33, 64, 256])
def test_the_parts_are_the_items_in_order_and_small_batches_stay_whole(items):
    parts = after(5.0).of(list(range(items)))
    assert [item for part in parts for item in part] == list(range(items))
    assert len(parts) == (1 if items < 32 else 2)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_long_commit_halves_nothing_and_a_quick_redis_ends_it():
    assert len(after(10.0, times=1).of(range(64))) == 1
    halves = after(10.0)
    for _ in range(50):
        halves.observe(64, step_s=0.001, commit_s=0.0005)
    assert len(halves.of(range(64))) == 1


def test_small_batches_and_batches_without_a_step_say_nothing():
    halves = after(10.0, items=8)
    halves.observe(64, step_s=0.0, commit_s=1.0)
    assert len(halves.of(range(64))) == 1
