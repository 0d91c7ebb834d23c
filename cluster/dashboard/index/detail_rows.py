"""What is computed from stored episodes: calls, sizes, flags. It is SQL over Arrow batches."""

import duckdb
import pyarrow as pa

NEEDED = (
    *("turns", "answer", "question", "error", "outcome", "worker", "spans"),
    *("generate_s", "tool_s", "queue_s", "reward_parts", "tags"),
)
"""Columns of an episode that details are computed from."""
_SHOWN = 200
_SAME_TURNS = 3
"""So many equal turns are a loop."""
_SAME_CALLS = 4
_WORDS = 60
"""A turn with so many words, of which a tenth is different, is a loop."""
_GARBLED = r"[\x{FFFD}\x{0}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}\p{Co}]"
_SHORTEST_ANSWER = 3
"""Characters: a shorter answer stands in a tool's output by chance."""
_TRIAL, _EXPERIENCE, _EXECUTION = 1, 2, 3

_TURNS = f"""
CREATE OR REPLACE TEMP TABLE batch_turns AS
SELECT uid, turn, t.phase AS phase, t."end" - t.start AS tokens, t.finish_reason AS finish_reason,
       t.policy_error AS policy_error, hash(t.text) AS text_hash, length(t.text) > 0 AS has_text,
       regexp_matches(t.text, '{_GARBLED}') AS garbled,
       CASE WHEN length(t.text) < 2 * {_WORDS} THEN FALSE
       ELSE len(string_split(t.text, ' ')) >= {_WORDS} AND
       10 * len(list_distinct(string_split(t.text, ' '))) <= len(string_split(t.text, ' '))
       END AS loop,
       t.calls AS calls
FROM (SELECT uid, unnest(turns) AS t, unnest(range(len(turns))) AS turn FROM stored)
"""
_CALLS = """
CREATE OR REPLACE TEMP TABLE batch_calls AS
SELECT found.uid, turn, number, c.name AS tool, c.status AS status, c.purpose AS phase,
       c.seconds AS seconds, c.cpu_seconds AS cpu_seconds, length(c.result) AS result_length,
       hash(c.name, c.arguments) AS call_hash,
       row_number() OVER (PARTITION BY found.uid, c.name ORDER BY turn, number) = 1
           AS first_of_tool,
       row_number() OVER (PARTITION BY found.uid, c.name, c.purpose ORDER BY turn, number) = 1
           AS first_of_phase,
       length(s.answer) >= $shortest AND contains(c.result, s.answer) AS has_answer
FROM (SELECT uid, turn, unnest(calls) AS c, unnest(range(len(calls))) AS number,
      uid AS owner FROM batch_turns) AS found
JOIN (SELECT uid AS owner, answer FROM stored) s USING (owner)
"""
_OF_CALLS = """
CREATE OR REPLACE TEMP TABLE of_calls AS
SELECT uid, count(*) FILTER (phase = 'trial') AS trial_calls,
       count(*) FILTER (phase = 'execution') AS execution_calls,
       count(*) FILTER (phase = 'trial' AND status IN ('tool_error', 'timeout')) AS trial_errors,
       count(*) FILTER (phase = 'execution' AND status IN ('tool_error', 'timeout'))
           AS execution_errors,
       count(*) FILTER (status = 'infra_error') AS infra_errors,
       bool_or(has_answer) AS has_answer,
       count(*) FILTER (phase = 'trial' AND status = 'ok') > 0 AS trial_ok
FROM batch_calls GROUP BY uid
"""
_OF_TURNS = """
CREATE OR REPLACE TEMP TABLE of_turns AS
SELECT uid, count(*) AS turns, count(*) FILTER (policy_error <> '') AS policy_errors,
       sum(tokens) AS tokens, bool_or(garbled) AS garbled, bool_or(loop) AS loop,
       bool_or(finish_reason = 'length') AS cut,
       count(*) FILTER (phase = 1) AS trial_turns, count(*) FILTER (phase = 2) AS experience_turns,
       count(*) FILTER (phase = 3) AS execution_turns,
       coalesce(sum(tokens) FILTER (phase = 1), 0) AS trial_tokens,
       coalesce(sum(tokens) FILTER (phase = 2), 0) AS experience_tokens,
       coalesce(sum(tokens) FILTER (phase = 3), 0) AS execution_tokens
FROM batch_turns GROUP BY uid
"""
_LOOPS = """
CREATE OR REPLACE TEMP TABLE loops AS
SELECT uid FROM batch_turns WHERE has_text GROUP BY uid, text_hash HAVING count(*) >= $turns
UNION SELECT uid FROM batch_calls GROUP BY uid, call_hash HAVING count(*) >= $calls
"""
_DETAILS = f"""
INSERT INTO details
SELECT s.uid, coalesce(t.turns, 0), coalesce(c.trial_calls, 0), coalesce(c.execution_calls, 0),
       coalesce(c.trial_errors, 0), coalesce(c.execution_errors, 0),
       coalesce(c.trial_errors + c.execution_errors, 0), coalesce(c.infra_errors, 0),
       coalesce(t.policy_errors, 0), coalesce(t.tokens, 0),
       coalesce(t.trial_turns, 0), coalesce(t.experience_turns, 0), coalesce(t.execution_turns, 0),
       coalesce(t.trial_tokens, 0), coalesce(t.experience_tokens, 0),
       coalesce(t.execution_tokens, 0),
       s.generate_s, s.tool_s, s.queue_s,
       list_max(list_transform(s.spans, lambda x: x.version)),
       s.worker, left(s.answer, {_SHOWN}), left(s.question, {_SHOWN}), left(s.error, {_SHOWN}),
       coalesce(t.garbled, FALSE), coalesce(t.loop, FALSE) OR l.uid IS NOT NULL,
       s.outcome = 'truncated' OR coalesce(t.cut, FALSE), coalesce(c.has_answer, FALSE),
       $shared AND coalesce(c.trial_ok, FALSE)
FROM stored s LEFT JOIN of_turns t USING (uid) LEFT JOIN of_calls c USING (uid)
LEFT JOIN loops l USING (uid)
"""
_REST = (
    "INSERT INTO calls SELECT uid, turn, number, tool, status, phase, seconds, cpu_seconds, "
    "result_length, first_of_tool, first_of_phase FROM batch_calls",
    "INSERT INTO tags SELECT uid, m.key, m.value FROM "
    "(SELECT uid, unnest(map_entries(tags)) AS m FROM stored)",
    "INSERT INTO parts SELECT uid, m.key, m.value FROM "
    "(SELECT uid, unnest(map_entries(reward_parts)) AS m FROM stored)",
)


def add_details(
    cursor: duckdb.DuckDBPyConnection, stored: pa.Table, *, shared_sessions: bool
) -> None:
    """Insert the details of the episodes in `stored`: the columns of NEEDED, and `uid`.

    `shared_sessions` is whether the run's trials act on the session that is graded.
    """
    cursor.register("stored", stored)
    cursor.execute(_TURNS)
    cursor.execute(_CALLS, {"shortest": _SHORTEST_ANSWER})
    cursor.execute(_OF_CALLS)
    cursor.execute(_OF_TURNS)
    cursor.execute(_LOOPS, {"turns": _SAME_TURNS, "calls": _SAME_CALLS})
    cursor.execute(_DETAILS, {"shared": shared_sessions})
    for statement in _REST:
        cursor.execute(statement)
    cursor.unregister("stored")
