"""Tables of the index. The run directory is the truth: an index of another version is made again.

`episodes` has what the narrow rows and the ledger say, `details` what is computed from the stored
episodes themselves, which are read later and more slowly. `uid` counts in the order of reading.
"""

import pyarrow as pa

INDEX_VERSION = 2

TABLES = """
CREATE TABLE meta (version INTEGER, run VARCHAR);
CREATE TABLE files (name VARCHAR, bytes BIGINT, lines BIGINT);
CREATE TABLE damage (place VARCHAR, what VARCHAR, fix VARCHAR, severity VARCHAR);
CREATE TABLE episodes (
    uid BIGINT, episode VARCHAR, attempt INTEGER, grp VARCHAR, task VARCHAR, sample_index INTEGER,
    environment VARCHAR, split VARCHAR, mode VARCHAR, source VARCHAR, outcome VARCHAR, reward REAL,
    oldest_version INTEGER, started_at DOUBLE, wall_s REAL, tokens INTEGER,
    segment VARCHAR, place BIGINT, nbytes BIGINT, row INTEGER,
    state VARCHAR, reason VARCHAR, step INTEGER, advantage REAL, trial_advantage REAL
);
CREATE TABLE details (
    uid BIGINT, turns INTEGER, trial_calls INTEGER, execution_calls INTEGER,
    trial_errors INTEGER, execution_errors INTEGER, tool_errors INTEGER, infra_errors INTEGER,
    policy_errors INTEGER, sampled_tokens INTEGER,
    trial_turns INTEGER, experience_turns INTEGER, execution_turns INTEGER,
    trial_tokens INTEGER, experience_tokens INTEGER, execution_tokens INTEGER,
    generate_s REAL, tool_s REAL, queue_s REAL, newest_version INTEGER,
    worker VARCHAR, answer VARCHAR, question VARCHAR, error VARCHAR,
    garbled BOOLEAN, loop BOOLEAN, truncated BOOLEAN, answer_in_tool BOOLEAN,
    trial_touched_state BOOLEAN
);
CREATE TABLE calls (
    uid BIGINT, turn INTEGER, number INTEGER, tool VARCHAR, status VARCHAR, phase VARCHAR,
    seconds REAL, cpu_seconds REAL, result_length INTEGER,
    first_of_tool BOOLEAN, first_of_phase BOOLEAN
);
CREATE TABLE tags (uid BIGINT, name VARCHAR, value VARCHAR);
CREATE TABLE parts (uid BIGINT, name VARCHAR, value REAL);
CREATE TABLE leases (
    episode VARCHAR, attempt INTEGER, grp VARCHAR, task VARCHAR, sample_index INTEGER, why VARCHAR
);
CREATE TABLE drops (
    line BIGINT, event VARCHAR, reason VARCHAR, grp VARCHAR, task VARCHAR, episode VARCHAR,
    step INTEGER
);
CREATE TABLE annotated (step INTEGER, mtime DOUBLE);
"""
"""`drops` has one row per episode of an event; `leases` the episodes in progress alone. Of an
episode's calls of a tool, the first is marked, and the first in each phase: so episodes are counted
without remembering which were seen.
"""

EPISODE_COLUMNS = (
    *("episode", "attempt", "grp", "task", "sample_index", "environment", "split", "mode"),
    *("source", "outcome", "reward", "oldest_version", "started_at", "wall_s", "tokens"),
    *("segment", "place", "nbytes", "row"),
)
"""Columns of `episodes` that a narrow row has, in its order."""

_TEXT, _INT, _LONG, _REAL = pa.string(), pa.int32(), pa.int64(), pa.float64()
INDEX_LINE = pa.schema(
    {
        "episode": _TEXT,
        "attempt": _INT,
        "group": _TEXT,
        "task": _TEXT,
        "sample_index": _INT,
        "environment": _TEXT,
        "split": _TEXT,
        "mode": _TEXT,
        "source": _TEXT,
        "outcome": _TEXT,
        "reward": _REAL,
        "oldest_version": _INT,
        "started_at": _REAL,
        "wall_s": _REAL,
        "tokens": _INT,
        "segment": _TEXT,
        "offset": _LONG,
        "nbytes": _LONG,
        "row": _INT,
    }
)
"""A line of `index/`."""
_SAMPLE = pa.struct({"episode": _TEXT, "sample_index": _INT, "attempt": _INT})
LEDGER_LINE = pa.schema(
    {
        "event": _TEXT,
        "group": _TEXT,
        "task": _TEXT,
        "samples": pa.list_(_SAMPLE),
        "episode": _TEXT,
        "attempt": _INT,
        "why": _TEXT,
        "step": _INT,
        "episodes": pa.list_(_TEXT),
        "reason": _TEXT,
        "collected_for": _INT,
    }
)
"""A line of `ledger/`, of whatever event."""
