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
"""Table for the rows of episodes between `load_begin` and `load_end`."""
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
        self.cursor.execute(
            "CREATE OR REPLACE TEMP TABLE history (line BIGINT, kind VARCHAR, episode VARCHAR, "
            "attempt INTEGER, step INTEGER, reason VARCHAR, grp VARCHAR, task VARCHAR, "
            "sample_index INTEGER)"
        )
        self.cursor.execute(
            "CREATE OR REPLACE TEMP TABLE drop_steps (line BIGINT, shown_step INTEGER)"
        )
        self.cursor.execute(
            f"CREATE OR REPLACE TEMP TABLE {STAGED} AS SELECT * FROM episodes LIMIT 0"
        )

    def load_piece(self, events: pa.Table, lines: pa.Array) -> None:
        """Take some events, in order."""
        for part, rolled_back in _parts(events, lines):
            self._register(part)
            self.cursor.execute(f"INSERT INTO history {_ALL_EVENTS}")
            self.cursor.execute(f"INSERT INTO drop_steps {_DROP_STEP}")
            if rolled_back is not None:
                line, step = rolled_back
                self.cursor.execute(
                    "DELETE FROM history WHERE kind IN ('trained', 'dropped') AND step > ?", [step]
                )
                self._note_roll_back(line, step)

    def load_end(self) -> None:
        """Fill `episodes`, `leases` and `drops` from what was taken."""
        self.cursor.execute(
            "CREATE OR REPLACE TEMP TABLE last_events AS SELECT episode, "
            "max(line) FILTER (WHERE kind = 're_leased') AS released_line, "
            "max(attempt) FILTER (WHERE kind = 're_leased') AS released_attempt, "
            "arg_max(reason, line) FILTER (WHERE kind = 're_leased') AS why, "
            f"max(line) FILTER (WHERE kind IN {_CLOSED}) AS closed_line, "
            f"arg_max(kind, line) FILTER (WHERE kind IN {_CLOSED}) AS kind, "
            f"arg_max(coalesce(step, -1), line) FILTER (WHERE kind IN {_CLOSED}) AS step, "
            f"arg_max(reason, line) FILTER (WHERE kind IN {_CLOSED}) AS reason "
            "FROM history GROUP BY episode"
        )
        self.cursor.execute(
            "CREATE OR REPLACE TEMP TABLE leased_as AS SELECT episode, grp, task, sample_index, "
            "attempt FROM history WHERE kind = 'leased'"
        )
        self._join_episodes()
        self.cursor.execute(
            "INSERT INTO leases SELECT l.episode, coalesce(x.released_attempt, l.attempt), l.grp, "
            "l.task, l.sample_index, coalesce(x.why, '') FROM leased_as l JOIN last_events x "
            "USING (episode) WHERE x.closed_line IS NULL OR x.closed_line < x.released_line"
        )
        self.cursor.execute(
            "INSERT INTO drops SELECT h.line, h.kind, h.reason, coalesce(l.grp, ''), "
            "coalesce(l.task, ''), h.episode, s.shown_step FROM history h "
            "LEFT JOIN leased_as l USING (episode) LEFT JOIN drop_steps s ON s.line = h.line "
            "WHERE h.kind IN ('dropped', 're_leased')"
        )
        self.cursor.unregister("ledger_events")
        for table in ("history", "drop_steps", "last_events", "leased_as", STAGED):
            self.cursor.execute(f"DROP TABLE {table}")

    def _join_episodes(self) -> None:
        """Fill `episodes` with the staged rows and what the ledger says of each."""
        columns = ", ".join(f"e.{name}" for name in EPISODE_COLUMNS)
        self.cursor.execute(
            f"INSERT INTO episodes SELECT e.uid, {columns}, "
            "CASE WHEN e.attempt < x.released_attempt THEN 'retried' "
            "WHEN x.kind IS NULL OR x.closed_line < x.released_line THEN 'stored' "
            "ELSE x.kind END, "
            "CASE WHEN e.attempt < x.released_attempt THEN x.why "
            "WHEN x.kind IS NULL OR x.closed_line < x.released_line THEN '' "
            "ELSE coalesce(x.reason, '') END, "
            "CASE WHEN e.attempt < x.released_attempt OR x.closed_line < x.released_line THEN NULL "
            "ELSE nullif(x.step, -1) END, NULL, NULL "
            f"FROM {STAGED} e LEFT JOIN last_events x ON x.episode = e.episode"
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
        self.cursor.register("ledger_events", events)


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
