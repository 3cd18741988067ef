"""The keys of a service with the default prefix, for tests that look into Redis or change it."""

from app.store.keys import Keys

KEYS = Keys()

record_key, history_key = KEYS.record, KEYS.history
board_key, seen_key = KEYS.board, KEYS.seen
closed_key, outcomes_key, closer_key = KEYS.closed, KEYS.outcomes, KEYS.closer
trust_key, drift_key, counted_key = KEYS.trust, KEYS.drift, KEYS.counted
