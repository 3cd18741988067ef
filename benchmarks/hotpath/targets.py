"""The targets of the hot path, each beside what a run reached: ratios of figures of one round."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from benchmarks.hotpath.compare import EMPTY, REFERENCE, Sample, Samples, pairs, valid
from benchmarks.hotpath.flat import Live
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import BEFORE

BATCH: Final = "willbuy-batch"
NONE: Final = "not measured"

_Figure = Callable[[Sample], float]


def table(samples: Samples, few: Mapping[int, Samples], lives: Sequence[Live], events_per_request: int) -> list[str]:
    """Return targets and what was reached as Markdown.

    Args:
        samples: of the servers with 64 connections.
        few: of willbuy now and before, by the number of connections.
        lives: with few and with many live sessions; the largest without huge pages counts.
        events_per_request: of the batch route.
    """
    mosec_p99 = [_ratio(samples, REFERENCE, name, _p99_ms) for name in ("mosec-own", "mosec")]
    rows = [
        ["CPU of a single event: at most 0.65 of an empty endpoint's", _ratio(samples, REFERENCE, EMPTY, _server_us)],
        ["events/s: at least 0.95 of mosec's with willbuy's model", _ratio(samples, REFERENCE, "mosec-own", _rate)],
        ["events/s: at least 0.75 of mosec's with its plain LSTM", _ratio(samples, REFERENCE, "mosec", _rate)],
        ["p99: at most 1.3 times mosec's", f"willbuy's model {mosec_p99[0]}; plain LSTM {mosec_p99[1]}"],
        [
            "one connection: p50 at most 0.8 of before",
            _ratio(few.get(1, {}), REFERENCE, f"{REFERENCE}{BEFORE}", lambda one: one.p50_ms),
        ],
        [
            "8 connections: at least 1.4 times the events/s of before",
            _ratio(few.get(8, {}), REFERENCE, f"{REFERENCE}{BEFORE}", _rate),
        ],
        [
            "batch route: at least 1.45 times the events/s of before",
            _ratio(samples, BATCH, f"{BATCH}{BEFORE}", _rate),
        ],
        [
            "batch route: at most 42 µs of the service an event",
            _figure(samples, lambda one: one.server_us / events_per_request),
        ],
        ["batch route: at most 17 µs of Redis an event", _figure(samples, lambda one: one.redis_us)],
    ]
    usual = max((live for live in lives if not live.huge_pages), key=lambda live: live.many, default=None)
    if usual is not None:
        both = {"many": usual.with_many, "few": usual.with_few}
        what = f"{usual.many:,} live sessions: at least 0.9 of the events/s with {usual.few:,}"
        rows.append([what, _ratio(both, "many", "few", _rate)])
    return markdown_table(("target", "reached"), rows)


def _ratio(samples: Samples, name: str, base: str, figure: _Figure) -> str:
    if not (samples.get(name) and samples.get(base)):
        return NONE
    return spread([figure(one) / figure(other) for one, other in pairs(samples[name], samples[base])], ".2f")


def _figure(samples: Samples, figure: _Figure) -> str:
    return spread([figure(one) for one in valid(samples[BATCH])], ".1f") if samples.get(BATCH) else NONE


def _rate(sample: Sample) -> float:
    return sample.events_per_s


def _p99_ms(sample: Sample) -> float:
    return sample.p99_ms


def _server_us(sample: Sample) -> float:
    return sample.server_us
