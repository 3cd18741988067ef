"""The keys in Redis. Each begins with `WILLBUY_REDIS_KEY_PREFIX`, here `wb:`.

    wb:{<shard>}:s:<session id>   string       its record
    wb:{<shard>}:h:<session id>   list         its history
    wb:{<shard>}:board            sorted set   open sessions of the shard by probability
    wb:{<shard>}:seen             sorted set   all sessions of the shard by time of last commit, in ms
    wb:{<shard>}:closed           stream       closed sessions in their stored form, until a replica publishes them
    wb:{<shard>}:outcomes         stream       closed sessions as JSON, for collectors
    wb:{<shard>}:decisions        stream       decisions of rules as JSON, for the live stream and webhooks
    wb:{<shard>}:experiments      hash         sums over ended sessions by rule and group, see `app.store.experiments`
    wb:{<shard>}:experiments:<n>  hash         the part of them that was decided in time bucket n, for an hour or so
    wb:{<shard>}:fired:<day>      hash         decisions of rules on a day
    wb:{00}:switches              hash         the rules that are switched off
    wb:{<shard>}:cap:<rule>       sorted set   tokens of a rule with a cap, by time, ms; the shard is the rule's name's
    wb:{<shard>}:closer           string       the replica that sweeps the shard now
    wb:{00}:trust:<model>:<n>     hash         counts of a model's answers and their outcomes, in time bucket n
    wb:{00}:drift:<model>:<n>     hash         counts of a model's inputs in closed sessions, in time bucket n
    wb:{00}:counted:<token>       string       marks counts that were added already
    wb:{00}:webhook:<name>:...    five kinds   messages of a webhook, see `app.store.webhooks`
    wb:{00}:webhooks:leader       string       the replica that moves decisions to the webhooks' queues now
    wb:{00}:webhooks:places       hash         by shard, the last decision that was moved
    wb:{<shard>}:probe:<token>:... five kinds    keys of one check of readiness, with a life of seconds
    wb:{00}:replicas              sorted set   names of the replicas by time of last report, Redis' clock, in ms
    wb:{00}:reports               hash         the last report of each
    wb:{<shard>}:token:<sha256>   string       what a token of a browser allows; the shard is the hash's
    wb:{<shard>}:visitor:<id>     string       last sessions of a vendor's visitor, see `app.store.ingest`
    wb:{00}:rejects               stream       records of vendors that could not become events, for a day
    wb:rate:{<shard>}:<limit>:<name>  hash     requests of API keys in a sliding window, see `rate_limit.lua`

The braces make the shard a Redis Cluster hash tag: all keys of a shard are in one slot, so one script may use them
together.

A commit writes the first four keys. A delete erases the session from these and from the streams. Both are atomic. A
purchase removes the session from the board and leaves it in `seen`.

The times in `seen` are of Redis' clock, which also ends sessions: a session has ended when the idle time has passed
since its time in `seen`. Then its record has expired, and the next event starts a new session. The history of an open
session stays for a grace time longer, in which the sweeper writes the session to `closed` (`app.outcomes`). The history
goes with that, with a reuse of the id, or with the end of the grace time.

An ended session stays in the two sorted sets until it is swept, so a reader of the board must check `seen`. Everything
expires: if no replica runs for the whole grace time, the outcomes of the sessions that ended meanwhile are lost. No
operation scans the keyspace.
"""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

from model.redis_keys import DEFAULT_KEY_PREFIX, SHARDS, check_key_prefix, outcomes_key, shard_prefix

# The shard of counts over all shards, and of the replicas' reports; the choice is arbitrary.
COUNTS_SHARD: Final = 0


def shard_of(session_id: str) -> int:
    """Return the shard, 0 to 255, of a session: CRC-32 of its UTF-8 bytes, modulo 256."""
    return crc32(session_id.encode()) % SHARDS


class Keys:
    """The keys under one prefix. The parts that all sessions of a shard share are made once.

    Args:
        prefix: beginning of every key.

    Raises:
        ValueError: keys may not begin with the prefix.
    """

    def __init__(self, prefix: str = DEFAULT_KEY_PREFIX) -> None:
        self._prefix = check_key_prefix(prefix)
        self._of_shard = tuple(shard_prefix(prefix, shard) for shard in range(SHARDS))
        self._sets = tuple((f"{start}board", f"{start}seen", f"{start}closed") for start in self._of_shard)

    def start(self, shard: int) -> str:
        """Return what all keys of a shard begin with."""
        return self._of_shard[shard]

    def record(self, session_id: str) -> str:
        """Return the key of a session's record, a string."""
        return f"{self._of_shard[shard_of(session_id)]}s:{session_id}"

    def history(self, session_id: str) -> str:
        """Return the key of a session's history, a list."""
        return f"{self._of_shard[shard_of(session_id)]}h:{session_id}"

    def records(self, shards: Sequence[int], session_ids: Sequence[str]) -> list[str]:
        """Return the keys of sessions' records, given the shard of each, so that a caller computes the shards once."""
        starts = self._of_shard
        return [f"{starts[shard]}s:{session_id}" for shard, session_id in zip(shards, session_ids, strict=True)]

    def session(self, shard: int, session_id: str) -> tuple[str, str, str, str, str]:
        """Return all keys that a commit of a session of this shard touches: board, seen, closed, record, history."""
        start = self._of_shard[shard]
        return *self._sets[shard], f"{start}s:{session_id}", f"{start}h:{session_id}"

    def board(self, shard: int) -> str:
        """Return the key of a shard's open sessions by probability, a sorted set."""
        return self._sets[shard][0]

    def seen(self, shard: int) -> str:
        """Return the key of a shard's sessions by the time of their last commit, a sorted set."""
        return self._sets[shard][1]

    def closed(self, shard: int) -> str:
        """Return the key of a shard's closed sessions that are not published yet, a stream."""
        return self._sets[shard][2]

    def outcomes(self, shard: int) -> str:
        """Return the key of a shard's closed sessions as JSON, a stream."""
        return outcomes_key(self._prefix, shard)

    def decisions(self, shard: int) -> str:
        """Return the key of a shard's decisions of rules, a stream."""
        return f"{self._of_shard[shard]}decisions"

    def experiments(self, shard: int) -> str:
        """Return the key of a shard's sums over sessions in which rules decided, a hash."""
        return f"{self._of_shard[shard]}experiments"

    def experiments_of(self, shard: int, bucket: int) -> str:
        """Return the key of the part of a shard's sums whose sessions were decided in a time bucket, a hash."""
        return f"{self._of_shard[shard]}experiments:{bucket}"

    def fired(self, shard: int, day: int) -> str:
        """Return the key of a shard's decisions on a day, in days since the epoch, a hash."""
        return f"{self._of_shard[shard]}fired:{day}"

    def switches(self) -> str:
        """Return the key of the rules that are switched off, a hash."""
        return f"{self._of_shard[COUNTS_SHARD]}switches"

    def cap(self, rule: str) -> str:
        """Return the key of the tokens that a rule with a cap has taken, a sorted set."""
        return f"{self._of_shard[shard_of(rule)]}cap:{rule}"

    def closer(self, shard: int) -> str:
        """Return the key of the replica that sweeps a shard now, a string."""
        return f"{self._of_shard[shard]}closer"

    def trust(self, model: str, bucket: int) -> str:
        """Return the key of the counts of a model's answers in a time bucket, a hash."""
        return f"{self._of_shard[COUNTS_SHARD]}trust:{model}:{bucket}"

    def drift(self, model: str, bucket: int) -> str:
        """Return the key of the counts of a model's inputs in a time bucket, a hash."""
        return f"{self._of_shard[COUNTS_SHARD]}drift:{model}:{bucket}"

    def counted(self, token: str) -> str:
        """Return the key that marks counts as added, a string."""
        return f"{self._of_shard[COUNTS_SHARD]}counted:{token}"

    def replicas(self) -> tuple[str, str]:
        """Return the keys of the replicas' names by the time of their last report, a sorted set, and of the reports."""
        start = self._of_shard[COUNTS_SHARD]
        return f"{start}replicas", f"{start}reports"

    def probe(self, shard: int, token: str) -> tuple[str, str, str, str, str, str]:
        """Return keys for a commit that only checks that commits work: their beginning, then those of a session.

        These are in the order record, history, board, seen, closed.
        """
        start = f"{self._of_shard[shard]}probe:{token}:"
        return start, f"{start}s:probe", f"{start}h:probe", f"{start}board", f"{start}seen", f"{start}closed"

    def webhook(self, name: str) -> tuple[str, str, str, str, str]:
        """Return the keys of a webhook's queue: due, bodies, tries, dead, causes."""
        start = f"{self._of_shard[COUNTS_SHARD]}webhook:{name}:"
        return f"{start}due", f"{start}bodies", f"{start}tries", f"{start}dead", f"{start}causes"

    def moved_decisions(self) -> tuple[str, str]:
        """Return the keys of the replica that moves decisions to webhooks, a string, and of the places, a hash."""
        start = self._of_shard[COUNTS_SHARD]
        return f"{start}webhooks:leader", f"{start}webhooks:places"

    def token(self, digest: str) -> str:
        """Return the key of a browser's token, given its SHA-256 in hexadecimal; a string."""
        return f"{self._of_shard[shard_of(digest)]}token:{digest}"

    def visitor(self, visitor_id: str) -> str:
        """Return the key of the last sessions of a vendor's visitor, a string."""
        return f"{self._of_shard[shard_of(visitor_id)]}visitor:{visitor_id}"

    def rejects(self) -> str:
        """Return the key of the records of vendors that could not become events, a stream."""
        return f"{self._of_shard[COUNTS_SHARD]}rejects"

    def rate(self, name: str, limit: int) -> str:
        """Return the key of the requests of API keys of a name, given their limit per window; a hash."""
        return f"{self._prefix}rate:{{{shard_of(name):02x}}}:{limit}:{name}"
