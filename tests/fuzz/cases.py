"""How much is tried."""

import os

from hypothesis import HealthCheck, Phase, settings

CASES = int(os.environ.get("WILLBUY_FUZZ_CASES", "0"))


def tried(cases: int) -> settings:
    """Settings of a test that gets so many cases, or as many as the environment says; then random ones."""
    return settings(
        max_examples=CASES or cases,
        derandomize=not CASES,
        # What a slow machine takes long for is no failure; what hangs meets pytest's own limit.
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
