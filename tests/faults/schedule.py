"""When things go wrong: the schedules of the short run in the tests, of the long one, and of the negative controls."""

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

# What a broken guarantee needs to show itself. Without faults, concurrent events and duplicates are enough for two.
CONTROLS: Final[dict[str, Sequence[Fault]]] = {
    "compare_and_set": (),
    "dedupe": (),
    "drain": (faults.roll_replica,),
}

# Redis itself may lose what it acknowledged; how much, and what narrows it.
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
