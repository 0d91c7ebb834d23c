"""What the ledger says about every episode, as tables: state, step, reason, and what is open.

Events are applied in SQL, so that a ledger of a million episodes takes seconds and no memory of
Python. `load` reads a whole ledger at once; `follow` applies what was appended. Both come to the
same tables, as a test compares.
"""

from dataclasses import dataclass

import duckdb
import pyarrow as pa

from cluster.dashboard.index.schema import EPISODE_COLUMNS

STAGED = "staged_episodes"
"""Table for the rows of episodes between `load_begin` and `load_end`. A row without a `uid` gets
its place in the table.
"""
EVENTS = "ledger_events"
"""Table or view of the events that are being taken, with the line of each."""
RAW_EVENTS = "raw_events"
"""Table of the events of a whole ledger, which DuckDB reads by itself."""
_CLOSED = "('finished', 'trained', 'dropped')"
_ALL_EVENTS = """
SELECT line, event AS kind, s.episode AS episode, s.attempt AS attempt, NULL::INTEGER AS step,
       '' AS reason, grp, task, s.sample_index AS sample_index
FROM (SELECT line, event, "group" AS grp, task, unnest(samples) AS s FROM ledger_events
      WHERE event = 'leased')
UNION ALL
SELECT line, event, episode, attempt, NULL, coalesce(why, ''), NULL, NULL, NULL
FROM ledger_events WHERE event IN ('re_leased', 'finished')
UNION ALL
SELECT line, event, unnest(episodes), NULL, step, coalesce(reason, ''), NULL, NULL, NULL
FROM ledger_events WHERE event IN ('trained', 'dropped')
"""
_KINDS, _STEPS = 4, 1 << 28
_PER_LINE = _KINDS * _STEPS
"""The last closing event of an episode is found as one largest number: its line, then its step (1
more than it, 0 for none), then its kind. That costs a fraction of comparing texts.
"""
_LEASED = """
SELECT s.episode, s.attempt, grp, task, s.sample_index
FROM (SELECT "group" AS grp, task, unnest(samples) AS s FROM ledger_events WHERE event = 'leased')
"""
_CLOSINGS = f"""
SELECT episode, line * {_PER_LINE} FROM ledger_events WHERE event = 'finished'
UNION ALL
SELECT unnest(episodes), line * {_PER_LINE} + CASE event WHEN 'trained' THEN 1 ELSE 2 END
       + least(greatest(coalesce(step, -1) + 1, 0), {_STEPS - 1}) * {_KINDS}
FROM ledger_events WHERE event IN ('trained', 'dropped')
"""
_MARKS = """
SELECT line, event, episode, attempt, coalesce(why, ''), NULL, NULL
FROM ledger_events WHERE event = 're_leased'
UNION ALL
SELECT line, event, unnest(episodes), NULL, coalesce(reason, ''), step,
       coalesce(step, collected_for)
FROM ledger_events WHERE event = 'dropped'
"""
_DROP_STEP = """
SELECT line, coalesce(step, collected_for) AS shown_step FROM ledger_events
WHERE event = 'dropped'
"""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Applies ledger events to the index that `cursor` uses, inside of its transaction."""

    cursor: duckdb.DuckDBPyConnection

    def load_begin(self) -> None:
        """Prepare to read a whole ledger."""
        run = self.cursor.execute
        run("CREATE OR REPLACE TEMP TABLE closings (episode VARCHAR, key BIGINT)")
        run(
            "CREATE OR REPLACE TEMP TABLE leased_as (episode VARCHAR, attempt INTEGER, "
            "grp VARCHAR, task VARCHAR, sample_index INTEGER)"
        )
        run(
            "CREATE OR REPLACE TEMP TABLE marks (line BIGINT, kind VARCHAR, episode VARCHAR, "
            "attempt INTEGER, reason VARCHAR, step INTEGER, shown_step INTEGER)"
        )
        run(f"CREATE OR REPLACE TEMP TABLE {STAGED} AS SELECT * FROM episodes LIMIT 0")

    def load_piece(self, events: pa.Table, lines: pa.Array) -> None:
        """Take some events, in order."""
        run = self.cursor.execute
        for part, rolled_back in _parts(events, lines):
            self._register(part)
            self.load_events()
            if rolled_back is not None:
                line, step = rolled_back
                run(
                    f"DELETE FROM closings WHERE (key & {_KINDS - 1}) <> 0 "
                    f"AND ((key // {_KINDS}) % {_STEPS}) - 1 > ?",
                    [step],
                )
                run("DELETE FROM marks WHERE kind = 'dropped' AND step > ?", [step])
                self._note_roll_back(line, step)

    def load_events(self) -> None:
        """Take the events in EVENTS, among which is no roll-back."""
        self.cursor.execute(f"INSERT INTO leased_as {_LEASED}")
        self.cursor.execute(f"INSERT INTO closings {_CLOSINGS}")
        self.cursor.execute(f"INSERT INTO marks {_MARKS}")

    def load_end(self) -> None:
        """Fill `episodes`, `leases` and `drops` from what was taken."""
        run = self.cursor.execute
        run(
            "CREATE OR REPLACE TEMP TABLE closed AS SELECT episode, max(key) AS key "
            "FROM closings GROUP BY episode"
        )
        run(
            "CREATE OR REPLACE TEMP TABLE released AS SELECT episode, max(line) AS line, "
            "max(attempt) AS attempt, arg_max(reason, line) AS why FROM marks "
            "WHERE kind = 're_leased' GROUP BY episode"
        )
        self._join_episodes()
        run(
            "INSERT INTO leases SELECT l.episode, coalesce(r.attempt, l.attempt), l.grp, l.task, "
            "l.sample_index, coalesce(r.why, '') FROM leased_as l "
            "LEFT JOIN closed c USING (episode) LEFT JOIN released r USING (episode) "
            f"WHERE c.key IS NULL OR c.key // {_PER_LINE} < r.line"
        )
        run(
            "INSERT INTO drops SELECT m.line, m.kind, m.reason, coalesce(l.grp, ''), "
            "coalesce(l.task, ''), m.episode, m.shown_step FROM marks m "
            "LEFT JOIN leased_as l USING (episode)"
        )
        self.cursor.unregister(EVENTS)
        for table in ("closings", "closed", "released", "marks", "leased_as", STAGED):
            run(f"DROP TABLE {table}")
        run(f"DROP VIEW IF EXISTS {EVENTS}")
        run(f"DROP TABLE IF EXISTS {RAW_EVENTS}")

    def _join_episodes(self) -> None:
        """Fill `episodes` with the staged rows and what the ledger says of each."""
        columns = ", ".join(f"e.{name}" for name in EPISODE_COLUMNS)
        kinds = f"['finished', 'trained', 'dropped'][1 + (c.key & {_KINDS - 1})]"
        retried = "coalesce(e.attempt < r.attempt, FALSE)"
        first = first_row(self.cursor, STAGED)
        open_again = f"(c.key IS NULL OR coalesce(c.key // {_PER_LINE} < r.line, FALSE))"
        self.cursor.execute(
            f"INSERT INTO episodes SELECT coalesce(e.uid, e.rowid - {first}), {columns}, "
            f"CASE WHEN {retried} THEN 'retried' WHEN {open_again} THEN 'stored' ELSE {kinds} END, "
            f"CASE WHEN {retried} THEN r.why WHEN {open_again} THEN '' "
            "ELSE coalesce(m.reason, '') END, "
            f"CASE WHEN {retried} OR {open_again} THEN NULL "
            f"ELSE nullif((c.key // {_KINDS}) % {_STEPS} - 1, -1) END, NULL, NULL "
            f"FROM {STAGED} e LEFT JOIN closed c ON c.episode = e.episode "
            "LEFT JOIN released r ON r.episode = e.episode "
            "LEFT JOIN (SELECT episode, line, any_value(reason) AS reason FROM marks "
            "WHERE kind = 'dropped' GROUP BY episode, line) m "
            f"ON m.episode = e.episode AND m.line = c.key // {_PER_LINE}"
        )

    def follow(self, events: pa.Table, lines: pa.Array) -> None:
        """Apply events that were appended."""
        for part, rolled_back in _parts(events, lines):
            if part.num_rows:
                self._register(part)
                self._apply()
            if rolled_back is not None:
                self._roll_back(*rolled_back)

    def _apply(self) -> None:
        run = self.cursor.execute
        run(f"CREATE OR REPLACE TEMP TABLE fresh AS {_ALL_EVENTS}")
        run(
            "INSERT INTO leases SELECT episode, attempt, grp, task, sample_index, '' FROM fresh "
            "WHERE kind = 'leased'"
        )
        known = "(SELECT episode, grp, task FROM leases UNION SELECT episode, grp, task FROM "
        known += "episodes WHERE episode IN (SELECT episode FROM fresh))"
        run(
            "INSERT INTO drops SELECT f.line, f.kind, f.reason, coalesce(k.grp, ''), "
            "coalesce(k.task, ''), f.episode, s.shown_step FROM fresh f "
            f"LEFT JOIN {known} k USING (episode) LEFT JOIN ({_DROP_STEP}) s ON s.line = f.line "
            "WHERE f.kind IN ('dropped', 're_leased')"
        )
        run(
            "UPDATE episodes SET state = 'retried', reason = r.why, step = NULL FROM "
            "(SELECT episode, max(attempt) AS attempt, arg_max(reason, line) AS why FROM fresh "
            "WHERE kind = 're_leased' GROUP BY episode) r "
            "WHERE episodes.episode = r.episode AND episodes.attempt < r.attempt"
        )
        run(
            "CREATE OR REPLACE TEMP TABLE closing AS SELECT episode, arg_max(kind, line) AS kind, "
            "arg_max(coalesce(step, -1), line) AS step, arg_max(reason, line) AS reason, "
            "arg_max(coalesce(attempt, -1), line) AS attempt FROM fresh GROUP BY episode"
        )
        run(
            "UPDATE episodes SET state = c.kind, step = nullif(c.step, -1), "
            "reason = coalesce(c.reason, '') FROM closing c WHERE episodes.episode = c.episode "
            f"AND episodes.state <> 'retried' AND c.kind IN {_CLOSED}"
        )
        self._follow_leases()

    def _follow_leases(self) -> None:
        run = self.cursor.execute
        run(
            "CREATE OR REPLACE TEMP TABLE again AS SELECT DISTINCT ON (c.episode) c.episode, "
            "c.attempt, coalesce(l.grp, e.grp, '') AS grp, coalesce(l.task, e.task, '') AS task, "
            "coalesce(l.sample_index, e.sample_index) AS sample_index, c.reason AS why "
            "FROM closing c LEFT JOIN leases l USING (episode) "
            "LEFT JOIN episodes e USING (episode) WHERE c.kind = 're_leased'"
        )
        run(
            "DELETE FROM leases WHERE episode IN "
            "(SELECT episode FROM closing WHERE kind <> 'leased')"
        )
        run("INSERT INTO leases SELECT * FROM again")

    def _roll_back(self, line: int, step: int) -> None:
        self.cursor.execute(
            "UPDATE episodes SET state = 'finished', reason = '', step = NULL, advantage = NULL, "
            "trial_advantage = NULL WHERE state IN ('trained', 'dropped') AND step > ?",
            [step],
        )
        self._note_roll_back(line, step)

    def _note_roll_back(self, line: int, step: int) -> None:
        self.cursor.execute("DELETE FROM drops WHERE event = 'dropped' AND step > ?", [step])
        self.cursor.execute(
            "INSERT INTO drops VALUES (?, 'rolled_back', ?, '', '', '', ?)",
            [line, f"back to the checkpoint of step {step}", step],
        )

    def _register(self, events: pa.Table) -> None:
        self.cursor.register(EVENTS, events)


def first_row(cursor: duckdb.DuckDBPyConnection, table: str) -> int:
    """Return the `rowid` of the first row of a table; those of a transaction begin anywhere."""
    found = cursor.execute(f"SELECT coalesce(min(rowid), 0) FROM {table}").fetchone()
    return found[0] if found else 0


def _parts(events: pa.Table, lines: pa.Array) -> list[tuple[pa.Table, tuple[int, int] | None]]:
    """Split events after each roll-back, which is the only one that needs what came before it."""
    numbered = events.append_column("line", lines)
    steps = events["step"].to_pylist() if _has_roll_backs(events) else []
    kinds = events["event"].to_pylist() if steps else []
    parts: list[tuple[pa.Table, tuple[int, int] | None]] = []
    start = 0
    for index, kind in enumerate(kinds):
        if kind == "rolled_back":
            place = (lines[index].as_py(), -1 if steps[index] is None else steps[index])
            parts.append((numbered.slice(start, index - start), place))
            start = index + 1
    return [*parts, (numbered.slice(start), None)]


def _has_roll_backs(events: pa.Table) -> bool:
    return "rolled_back" in events["event"].unique().to_pylist()
