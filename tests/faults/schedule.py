"""The schedules of faults: of the short run in the tests, of the long run, and of the negative controls."""

from collections.abc import Sequence
from typing import Final

from faults import faults
from faults.faults import Fault

SHORT: Final[Sequence[Fault]] = (
    faults.slow_redis,
    faults.kill_replica,
    faults.kill_redis,
    faults.pause_replica,
    faults.reload_models,
    faults.pause_redis,
    faults.cut_connections,
    faults.roll_replica,
)

LONG: Final[Sequence[Fault]] = (*SHORT, faults.block_redis, faults.canary, faults.roll_fleet, faults.release)

# Of `willbuy consume`: each fault of a replica is a rebalance too.
CONSUMERS: Final[Sequence[Fault]] = (
    faults.slow_redis,
    faults.kill_waiting_replica,
    faults.pause_broker,
    faults.stall_consumer,
    faults.kill_redis,
    faults.roll_replica,
    faults.pause_redis,
    faults.cut_connections,
    faults.reload_models,
)

# The faults that reveal a missing guarantee. For two guarantees, concurrent events and duplicates suffice.
CONTROLS: Final[dict[str, Sequence[Fault]]] = {
    "compare_and_set": (),
    "dedupe": (),
    "drain": (faults.roll_replica,),
    "marks": (),
}

# Runs in which Redis itself may lose acknowledged writes: how many, and how to lose fewer.
FAIL_OVER: Final[Sequence[Fault]] = (faults.fail_over,)
FAIL_OVER_STALLED: Final[Sequence[Fault]] = (faults.fail_over_stalled,)
RESTART: Final[Sequence[Fault]] = (faults.kill_redis,)

CLUSTER: Final[Sequence[Fault]] = (
    faults.move_slots,
    faults.change_primary,
    faults.kill_replica,
    faults.pause_replica,
    faults.canary,
)
