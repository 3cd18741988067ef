"""The short run of the fault harness, and negative controls. `make faults` is the long run (docs/faults.md)."""

import pytest
from conftest import missing
from support.redis_servers import find_binary

from faults import faults
from faults.campaign import Campaign, run
from faults.schedule import CONTROLS, SHORT

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# The violation that reveals each missing guarantee, and the number of replicas.
CAUGHT_BY = {
    "compare_and_set": ("wrong_answers", 2),
    "dedupe": ("folded_twice", 1),
    "drain": ("dropped_by_drain", 1),
    "marks": ("decisions_doubled", 1),
}

# With the group's time-outs, and the time in which the oracle waits for the last commit.
CONSUMERS_S = 300


@pytest.fixture
def binary():
    found = find_binary("valkey-8.1")
    if found is None:
        raise missing("valkey-8.1")
    return found


async def test_under_faults_every_session_is_the_offline_fold_of_its_acknowledged_events(binary, tmp_path):
    report = await run(Campaign("short", binary, SHORT, sessions=200, shoppers=30, pause_s=0.3), tmp_path)
    assert report.passed, report.summary()
    # And the run had two models, duplicates and failed requests
    assert report.counts["models_seen"] == 2
    assert report.counts["acknowledgements_of_duplicates"] > 50
    assert report.counts["decisions"] > 500
    assert {"200", "503", "no answer"} <= report.counts["statuses"].keys()


@pytest.mark.timeout(CONSUMERS_S)
async def test_under_faults_consumers_of_a_topic_lose_nothing_and_count_nothing_twice(binary, tmp_path):
    schedule = (faults.kill_replica, faults.pause_redis, faults.roll_replica)
    campaign = Campaign("consumers", binary, schedule, sessions=150, shoppers=30, replicas=2, has_kafka=True)
    report = await run(campaign, tmp_path)
    assert report.passed, report.summary()
    assert report.counts["acknowledgements_of_duplicates"] > 50
    assert report.counts["acknowledged_events"] == report.counts["events"]


@pytest.mark.timeout(CONSUMERS_S)
async def test_consumers_that_commit_before_redis_has_the_events_are_caught(binary, tmp_path):
    schedule = (faults.kill_committed_consumer,)
    campaign = Campaign(
        "offsets",
        binary,
        schedule,
        sessions=60,
        shoppers=30,
        replicas=1,
        think_s=0.05,
        has_kafka=True,
        breakage="offsets",
    )
    report = await run(campaign, tmp_path)
    assert report.verdict.counts["undelivered"] > 0, report.summary()


@pytest.mark.parametrize("guarantee", CONTROLS)
async def test_a_service_without_a_guarantee_is_caught(guarantee, binary, tmp_path):
    violation, replicas = CAUGHT_BY[guarantee]
    campaign = Campaign(
        guarantee,
        binary,
        CONTROLS[guarantee],
        sessions=60,
        shoppers=30,
        replicas=replicas,
        think_s=0.02,
        breakage=guarantee,
    )
    report = await run(campaign, tmp_path)
    assert report.verdict.counts[violation] > 0, report.summary()
