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
from app.scoring.model_holder import ArtifactFile, ModelHolder
from app.settings import Settings
from model.predictor import Predictor

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


def a_live_model(release, model=None, metrics=None):
    return ModelHolder(
        model or FakeModel("a"),
        path=release.path,
        stamp=stamp_of(release.path),
        load_unless=release.load_unless,
        metrics=metrics or Metrics(),
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


def reloads(metrics, result):
    return metrics.registry.get_sample_value("willbuy_model_reloads_total", {"result": result}) or 0


async def test_the_same_model_is_left_in_place(release):
    metrics = Metrics()
    models = a_live_model(release, metrics=metrics)
    before = models.current
    assert await models.reload() == "unchanged"
    assert models.current is before
    assert reloads(metrics, "unchanged") == 1


def test_another_artifact_is_loaded_and_warmed_up_and_the_same_one_is_not(artifact, monkeypatch):
    warmed = []
    monkeypatch.setattr(Predictor, "warm_up", lambda predictor: warmed.append(predictor.fingerprint))
    file = ArtifactFile(artifact, None, Settings(artifact=artifact))
    model = file.load_unless("another")
    assert model is not None
    assert warmed == [model.fingerprint]
    assert file.load_unless(model.fingerprint) is None
    assert len(warmed) == 1


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


async def test_a_file_that_is_gone_for_a_while_is_no_model_that_was_refused(release):
    metrics = Metrics()
    models = a_live_model(release, metrics=metrics)
    release.path.rename(release.path.with_suffix(".away"))
    models.start_watch()
    await asyncio.sleep(0.05)
    assert release.loads == 0
    assert reloads(metrics, "refused") == 0
    release.put("b")
    await until(lambda: reloads(metrics, "swapped") == 1)
    await models.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for raises no event
            await asyncio.sleep(0.001)
