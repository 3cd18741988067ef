"""Compares the service's answers, and the data in Redis at the end, with the offline model.

Only the ledger is trusted. The histories give the order of commits. `Predictor.score_sessions` (the sequence path,
float32, without stored states) folds every history again, and every answer is compared with the result for its number
of events and its model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from app.errors import StoreError
from app.store.record_codec import Outcome, Record
from faults.answers import fault_of_fold, fault_of_probability
from faults.driver import is_expected
from faults.fleet import Pause, Termination
from faults.ledger import Ledger, Sent
from faults.verdict import Verdict
from model.events import PURCHASE, Event
from model.predictor import Predictor

# Largest difference of an answer from the offline model, by the type of the stored h and c.
TOLERANCE: Final = {"float16": 2e-3, "float32": 1e-5}
# A request sent so shortly before SIGTERM may use a connection that is being closed; HTTP cannot distinguish that.
_RACE_S: Final = 0.3


class Oracle:
    """Judges sessions.

    Args:
        predictors: every model of the run.
        state_dtype: type of the service's stored states.
    """

    def __init__(self, predictors: Sequence[Predictor], state_dtype: str) -> None:
        self._predictors = {predictor.fingerprint: predictor for predictor in predictors}
        self._tolerance = TOLERANCE[state_dtype]
        self.verdict = Verdict()

    def judge_sessions(
        self,
        ledger: Ledger,
        records: Mapping[str, Record | StoreError | None],
        histories: Mapping[str, list[Event] | StoreError],
    ) -> None:
        """Judge stored data and answers; both mappings contain every session of the ledger."""
        stored = {name: [] if isinstance(history, StoreError) else history for name, history in histories.items()}
        ids = list(ledger.sessions)
        # The probability after each event, by model and session.
        offline = {
            fingerprint: dict(zip(ids, predictor.score_sessions([stored[name] for name in ids]), strict=True))
            for fingerprint, predictor in self._predictors.items()
        }
        for name in ids:
            session = ledger.sessions[name]
            scores = {fingerprint: offline[fingerprint][name] for fingerprint in offline}
            positions = self._judge_history(name, session, stored[name])
            for sent in session.values():
                self._judge_event(sent, positions[sent.posting.event_id], len(stored[name]), records[name], scores)
            self._judge_record(name, records[name], stored[name], scores, session)
        self._judge_states(records, stored)

    def judge_board(self, records: Mapping[str, Record | StoreError | None], board: Mapping[str, float]) -> None:
        """Judge the live board: it has exactly the open sessions, with their probabilities."""
        expected = {
            name: record.probability
            for name, record in records.items()
            if isinstance(record, Record) and record.outcome is Outcome.OPEN and record.probability is not None
        }
        for name in expected.keys() | board.keys():
            # Redis stores and prints scores as doubles, so they are exactly equal.
            if expected.get(name) != board.get(name):
                self.verdict.found("wrong_board", f"{name}: {board.get(name)}, not {expected.get(name)}")

    def judge_requests(
        self, ledger: Ledger, pauses: Sequence[Pause], terminations: Sequence[Termination], patience_s: float
    ) -> None:
        """Judge whether requests were answered in time and replicas ended with status 0."""
        for attempt in ledger.attempts():
            if not is_expected(attempt):
                self.verdict.found("refused", f"{attempt.status} {attempt.body.get('code')}")
            overlaps = (
                pause.replica == attempt.replica
                and pause.began_s < attempt.ended_s
                and pause.ended_s > attempt.started_s
                for pause in pauses
            )
            if attempt.patience_s == patience_s and not any(overlaps):
                self.verdict.found("hung", f"replica {attempt.replica}, {attempt.ended_s - attempt.started_s:.1f} s")
            for stop in terminations:
                if (
                    attempt.replica == stop.replica
                    and attempt.status is None
                    and attempt.patience_s is None
                    and attempt.started_s < stop.signalled_s - _RACE_S
                    and stop.signalled_s < attempt.ended_s
                ):
                    waited_s = stop.signalled_s - attempt.started_s
                    self.verdict.found("dropped_by_drain", f"sent {waited_s:.2f} s before the signal")
        for stop in terminations:
            if stop.status != 0:
                self.verdict.found("unclean_exits", f"replica {stop.replica}: status {stop.status}")

    def _judge_history(self, name: str, session: Mapping[str, Sent], history: list[Event]) -> dict[str, list[int]]:
        """Return the positions, from 1, at which each event id was folded."""
        by_time = {sent.posting.event.timestamp_ms: sent for sent in session.values()}
        positions: dict[str, list[int]] = defaultdict(list)
        earliest_acknowledgement_s = inf
        for position in range(len(history), 0, -1):
            event = history[position - 1]
            sent = by_time.get(event.timestamp_ms)
            if sent is None or sent.posting.event != event or event.event_name == PURCHASE:
                self.verdict.found("never_sent", f"{name}, event {position}: {event}")
                continue
            positions[sent.posting.event_id].append(position)
            if sent.first_sent_s > earliest_acknowledgement_s:
                self.verdict.found("reordered", f"{sent.posting.event_id} at position {position}")
            earliest_acknowledgement_s = min(earliest_acknowledgement_s, sent.acknowledged_s)
        return positions

    def _judge_event(
        self,
        sent: Sent,
        positions: list[int],
        length: int,
        record: Record | StoreError | None,
        scores: Mapping[str, list[float]],
    ) -> None:
        event_id = sent.posting.event_id
        if len(positions) > 1:
            self.verdict.found("folded_twice", f"{event_id} at {positions}")
        if not sent.answers:
            if sent.wanted:
                last = sent.attempts[-1]
                self.verdict.found("undelivered", f"{event_id}: {last.status} {last.body.get('code')}")
            return
        folded = any(answer["folded"] for answer in sent.answers)
        closed = isinstance(record, Record) and record.outcome is Outcome.PURCHASE
        if (folded and not positions) or (not folded and not closed):
            self.verdict.found("lost", f"{event_id}, acknowledged as {sent.answers[0]}")
        for answer in sent.answers:
            reason = fault_of_fold(answer, sent.posting.is_purchase, positions, length) or fault_of_probability(
                answer, length, scores, self._tolerance
            )
            if reason:
                self.verdict.found("wrong_answers", f"{event_id}: {reason}: {answer}")
        facts = ("probability", "events", "model", "outcome", "folded")
        distinct = {tuple(answer[fact] for fact in facts) for answer in sent.answers}
        firsts = sum(not answer["duplicate"] for answer in sent.answers)
        if len(distinct) > 1 or firsts > 1:
            self.verdict.found("unequal_duplicates", f"{event_id}: {sent.answers}")

    def _judge_record(
        self,
        name: str,
        record: Record | StoreError | None,
        history: list[Event],
        scores: Mapping[str, list[float]],
        session: Mapping[str, Sent],
    ) -> None:
        if record is None:
            if history:
                self.verdict.found("wrong_records", f"{name}: none, with {len(history)} events of history")
            return
        if isinstance(record, StoreError):
            self.verdict.found("wrong_records", f"{name}: {record.code}")
            return
        probability = scores[record.model][-1] if scores.get(record.model) else None
        facts = {
            "events": record.events == len(history),
            "last_event_ms": record.last_event_ms == max((event.timestamp_ms for event in history), default=0),
            "outcome": record.outcome is Outcome.OPEN or any(sent.posting.is_purchase for sent in session.values()),
            "probability": record.probability == probability
            if record.probability is None or probability is None
            else abs(record.probability - probability) <= self._tolerance,
        }
        if wrong := [fact for fact, right in facts.items() if not right]:
            self.verdict.found("wrong_records", f"{name}: {', '.join(wrong)} of {record.events} events")

    def _judge_states(
        self, records: Mapping[str, Record | StoreError | None], histories: Mapping[str, list[Event]]
    ) -> None:
        """Fold one more event from each stored state; the result must equal the fold of the whole history."""
        for fingerprint, predictor in self._predictors.items():
            chosen = {
                name: record
                for name, record in records.items()
                if isinstance(record, Record)
                and record.model == fingerprint
                and histories[name]
                and predictor.reads(record.state)
            }
            probes = [Event("view_cart", records_last + 1000) for records_last in _last_times(chosen)]
            found, _ = predictor.advance(probes, [record.state for record in chosen.values()])
            whole = predictor.score_sessions(
                [[*histories[name], probe] for name, probe in zip(chosen, probes, strict=True)]
            )
            for name, probability, scores in zip(chosen, found, whole, strict=True):
                if abs(probability - scores[-1]) > self._tolerance:
                    self.verdict.found("wrong_records", f"{name}: its state goes on to {probability}, not {scores[-1]}")


def _last_times(records: Mapping[str, Record]) -> list[int]:
    return [record.last_event_ms for record in records.values()]
