import asyncio
import gc
import io
import weakref

import pytest
from support.fakes import FakeModel

from app.errors import ArtifactRefusedError, ReloadInProgressError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.runtime.file_watch import stamp_of
from app.scoring.model_holder import ModelHolder

pytestmark = pytest.mark.anyio


class Release:
    """What stands at the path: a model of this salt, or something that cannot be loaded."""

    def __init__(self, path):
        self.path = path
        self.loads = 0
        self.put("a")

    def put(self, salt):
        temporary = self.path.with_suffix(".new")
        temporary.write_text(salt)
        temporary.replace(self.path)

    def load_unless(self, fingerprint):
        self.loads += 1
        salt = self.path.read_text()
        if salt == "bad":
            raise ValueError("it is bad")
        if salt == "worse":
            raise KeyError("internals")
        model = FakeModel(salt)
        return None if model.fingerprint == fingerprint else model


@pytest.fixture
def release(tmp_path):
    return Release(tmp_path / "model")


def a_live_model(release, model=None):
    return ModelHolder(
        model or FakeModel("a"),
        path=release.path,
        stamp=stamp_of(release.path),
        load_unless=release.load_unless,
        metrics=Metrics(),
        logger=build_logger(log_level="error", stream=io.StringIO()),
        watch_every_s=0.001,
    )


async def test_another_model_takes_the_place_and_the_old_one_is_freed(release):
    old = weakref.ref(model := FakeModel("a"))
    models = a_live_model(release, model)
    del model
    loaded_at = models.loaded_at
    release.put("b")
    assert await models.reload() == "swapped"
    assert models.current.fingerprint == FakeModel("b").fingerprint
    assert models.loaded_at > loaded_at
    gc.collect()
    assert old() is None


async def test_the_same_model_is_left_in_place(release):
    models = a_live_model(release)
    before = models.current
    assert await models.reload() == "unchanged"
    assert models.current is before


@pytest.mark.parametrize(("salt", "reason"), [("bad", "it is bad"), ("worse", "the log says why")])
async def test_what_cannot_be_loaded_is_refused_and_the_next_good_one_is_taken(release, salt, reason):
    models = a_live_model(release)
    before = models.current
    release.put(salt)
    with pytest.raises(ArtifactRefusedError, match=reason) as caught:
        await models.reload()
    assert "internals" not in str(caught.value)
    assert models.current is before
    release.put("b")
    assert await models.reload() == "swapped"


async def test_two_reloads_at_once_are_one_too_many(release):
    models = a_live_model(release)
    results = await asyncio.gather(models.reload(), models.reload(), return_exceptions=True)
    assert results[0] == "unchanged"
    assert isinstance(results[1], ReloadInProgressError)
    assert await models.reload() == "unchanged"


async def test_the_watch_looks_without_loading_until_the_file_is_another(release):
    models = a_live_model(release)
    models.start_watch()
    await asyncio.sleep(0.05)
    assert release.loads == 0
    release.put("bad")
    await until(lambda: release.loads == 1)
    await asyncio.sleep(0.05)
    # A refused file is not tried again and again
    assert release.loads == 1
    release.put("b")
    await until(lambda: models.current.fingerprint == FakeModel("b").fingerprint)
    await models.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for raises no event
            await asyncio.sleep(0.001)
