"""An intervention in a synthetic shop, with its exact effect.

A rule fires at a session's first event of one name. Treatment multiplies the odds of a purchase after each later event
by exp(log_odds); the probability of leaving, given no purchase, stays. So the event itself, all before it, and a
session that is held out follow the shop's own process.

The effect is exact. With m_n(z, x) the mass of sessions that are in intent z and context x after n events without
having fired, and d_n(z, x) the mass that fires there, the conversion of the fired sessions is

    sum_n d_n (buys + goes_on transition A V_{n+1}) / sum_n d_n

where A averages over the next name, and V (`posterior.purchase_values`) is of the treated or of the shop's own process.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.synthetic.posterior import Phases, posterior, purchase_values
from training.synthetic.process import CAMPAIGN_SHARE, DEVICE_SHARE, EVENT_NAMES, VISITS_SHARE, Process
from training.synthetic.sample import Traces, sample

_MOST_LOG_ODDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Effect:
    """The exact conversions of the sessions in which the rule fires.

    Attributes:
        fires: share of all sessions in which it does.
        control: P(purchase) of a session that is held out.
        treatment: P(purchase) of a treated session.
    """

    fires: float
    control: float
    treatment: float

    @property
    def difference(self) -> float:
        """Treatment minus control."""
        return self.treatment - self.control


@dataclass(frozen=True, slots=True)
class Treatment:
    """A rule of one event name and what treatment does.

    Attributes:
        log_odds: added to the log-odds of a purchase after each later event; 0: the treatment does nothing.
        trigger: the event's name, one of `process.EVENT_NAMES`.

    Raises:
        ValueError: there is no such name, or the number is not from -5 to 5.
    """

    log_odds: float
    trigger: str = "add_to_cart"

    def __post_init__(self) -> None:
        if self.trigger not in EVENT_NAMES:
            raise ValueError(f"trigger: expected one of {', '.join(EVENT_NAMES)}, not {self.trigger!r}")
        if not abs(self.log_odds) <= _MOST_LOG_ODDS:
            raise ValueError(f"log_odds: a number from -5 to 5 is needed, not {self.log_odds!r}")

    def process(self, process: Process) -> Process:
        """Return the process that a treated session follows after the rule has fired."""
        factor = np.exp(self.log_odds)
        buys = process.buys * factor / (1.0 - process.buys + process.buys * factor)
        return replace(process, buys=buys, leaves=process.leaves * (1.0 - buys) / (1.0 - process.buys))

    def draw(
        self, process: Process, sessions: int, rng: np.random.Generator, *, treated: bool | NDArray[np.bool_]
    ) -> Traces:
        """Return sessions; `fired` says in which of them the rule fires.

        Args:
            process: the shop's.
            sessions: how many to draw.
            rng: the source of chance.
            treated: whether each session would be treated (S,), or all of them.
        """
        group = np.broadcast_to(treated, sessions)
        return sample(
            process, sessions, rng, treated=self.process(process), trigger=EVENT_NAMES.index(self.trigger), group=group
        )

    def fired(self, traces: Traces) -> np.ndarray:
        """Return (S,) booleans: whether the rule fires in each session."""
        fired: np.ndarray = (traces.name == EVENT_NAMES.index(self.trigger)).any(axis=1)
        return fired

    def posterior(
        self, process: Process, traces: Traces, group: NDArray[np.bool_], *, held_out: float
    ) -> NDArray[np.float64]:
        """Return (S, N) probabilities of a purchase after each event; NaN after a session's end.

        A session's group is known from the event on at which the rule fires.

        Args:
            process: the shop's.
            traces: the sessions.
            group: (S,) whether each would be treated.
            held_out: share of the sessions that would not.
        """
        trigger, after = EVENT_NAMES.index(self.trigger), self.process(process)
        goes_on = 1.0 - process.buys - process.leaves
        own, later = purchase_values(process), purchase_values(after)
        now, before = np.empty_like(own), np.empty_like(own)
        now[-1] = before[-1] = process.buys
        for n in range(len(own) - 2, -1, -1):
            now[n] = process.buys + goes_on * (process.transition @ _drawn(process, later[n + 1]))
            ahead = before[n + 1][:, process.next_context]
            fires = held_out * own[n + 1] + (1.0 - held_out) * now[n + 1]
            ahead[:, :, trigger] = fires[:, process.next_context[:, trigger]]
            drawn = np.einsum("wxe,wxe->wx", process.emission, ahead)
            before[n] = process.buys + goes_on * (process.transition @ drawn)
        # How many events since the rule has fired, the one at which it does included: 0 before, 1 at it.
        since = ((traces.name == trigger).cumsum(axis=1) > 0).cumsum(axis=1)
        phase = np.where(group[:, None] | (since == 0), np.minimum(since, 2), 3)
        stays = [goes_on, goes_on, 1.0 - after.buys - after.leaves, goes_on]
        return posterior(process, traces, phases=Phases(phase, np.stack([before, now, later, own]), np.stack(stays)))

    def effect(self, process: Process) -> Effect:
        """Return the exact conversions of both groups."""
        trigger = EVENT_NAMES.index(self.trigger)
        values = [_ahead(process, purchase_values(one)) for one in (process, self.process(process))]
        goes_on = 1.0 - process.buys - process.leaves
        intents, contexts = process.buys.shape
        mass = np.zeros((intents, contexts))
        mass[:, process.first_context] = np.einsum(
            "d,c,v,dcvk->k", DEVICE_SHARE, CAMPAIGN_SHARE, VISITS_SHARE, process.start
        )
        fires, bought = 0.0, np.zeros(2)
        for n in range(process.shape.max_events):
            if n > 0:
                mass = process.transition.T @ (mass * goes_on)
            following, firing = np.zeros_like(mass), np.zeros_like(mass)
            for name in range(len(EVENT_NAMES)):
                into = firing if name == trigger else following
                # Several contexts lead to one, so add.at.
                np.add.at(into.T, process.next_context[:, name], (mass * process.emission[:, :, name]).T)
            fires += firing.sum()
            for group, ahead in enumerate(values):
                later = goes_on * (process.transition @ ahead[n]) if n + 1 < process.shape.max_events else 0.0
                bought[group] += (firing * (process.buys + later)).sum()
            mass = following
        return Effect(float(fires), *(float(one) for one in bought / fires))


def _ahead(process: Process, value: np.ndarray) -> np.ndarray:
    """Return (max_events - 1, K, X): of having context x, and being in intent w for the next event, still undrawn."""
    return np.stack([_drawn(process, later) for later in value[1:]])


def _drawn(process: Process, value: np.ndarray) -> np.ndarray:
    """Return (K, X): the value before the name of the event is drawn, of the values (K, X) after it."""
    drawn: np.ndarray = np.einsum("wxe,wxe->wx", process.emission, value[:, process.next_context])
    return drawn
