"""Traces beside the event loop's own steps, on a real artifact."""

import asyncio
import io

import pytest
from support.event_strategies import random_session

from app.monitoring.logging import build_logger
from app.scoring.tracer import Tracer
from model.predictor import load_predictor

pytestmark = pytest.mark.anyio


async def test_a_trace_in_a_thread_and_steps_beside_it_disturb_each_other_not(artifact):
    predictor = load_predictor(artifact, state_dtype="float32", threads=1)
    predictor.warm_up()
    tracer = Tracer(max_concurrent=2, timeout_s=60, logger=build_logger(log_level="info", stream=io.StringIO()))
    histories = [random_session(seed, 60) for seed in range(8)]
    alone = [trace for trace, _ in predictor.traces(histories)]
    tracing = asyncio.gather(*(tracer.trace(predictor, history) for history in histories))
    steps = []
    states: list[bytes | None] = [None] * len(histories)
    for number in range(60):
        probabilities, following = predictor.advance([history[number] for history in histories], states)
        states = [*following]
        steps.append(probabilities)
        await asyncio.sleep(0)
    traces = await tracing
    for seed, expected in enumerate(alone):
        assert traces[seed] == pytest.approx(expected, abs=1e-6)
        assert [step[seed] for step in steps] == pytest.approx(expected, abs=1e-6)


async def test_no_events_need_no_model(artifact):
    tracer = Tracer(max_concurrent=1, timeout_s=1, logger=build_logger(log_level="info"))
    assert await tracer.trace(load_predictor(artifact), []) == []
