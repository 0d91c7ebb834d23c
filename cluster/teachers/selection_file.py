"""`selection.json` in a run directory: which of its episodes SFT trains on, and why not the others.

It is computed from the stored episodes and replaced completely, so filtering again loses nothing.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from envs.errors import StoreError
from envs.tools import JsonObject
from rollout.episode import Episode
from rollout.episode_schema import from_batch
from rollout.evaluation.teacher_filter import (
    Candidate,
    FilterConfig,
    FilterContext,
    Reason,
    TeacherSelection,
    examine,
    select,
)
from rollout.store.journal import replace_file
from rollout.store.run_layout import RunLayout
from rollout.store.run_reader import RunReader
from rollout.store.segments import EpisodeRow

_AT_ONCE = 64
_SHOWN = 200
"""Characters of an error that the report shows."""
_MOST_VALUES = 12
"""A tag with more values than this is left out of the report."""


class SelectionFile(BaseModel):
    """The content of `selection.json`; in older run directories, of `kept.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rules: FilterConfig
    report: dict[str, JsonValue]
    selected: tuple[str, ...] = Field(validation_alias=AliasChoices("selected", "kept"))
    dropped: dict[str, Reason]


def select_episodes(run: Path, rules: FilterConfig, given: FilterContext) -> SelectionFile:
    """Filter the episodes stored in `run` and write the selection."""
    candidates = [examine(episode, rules, given) for episode in stored_episodes(RunReader(run))]
    selection = select(candidates, rules)
    file = SelectionFile(
        rules=rules,
        report=describe(candidates, selection),
        selected=selection.selected,
        dropped=dict(selection.dropped),
    )
    replace_file(RunLayout(run).selection, file.model_dump_json(indent=1).encode())
    return file


def read_selection(run: Path) -> SelectionFile | None:
    """Return the selection of `run`, None where it was never filtered. Raises StoreError."""
    layout = RunLayout(run)
    for path in (layout.selection, layout.older_selection):
        if path.exists():
            try:
                return SelectionFile.model_validate_json(path.read_bytes())
            except ValidationError as error:
                raise StoreError(
                    f"{path}: expected a selection of episodes, found {error}"
                ) from error
    return None


def stored_episodes(reader: RunReader) -> Iterator[Episode]:
    """Yield every stored episode's last attempt, ordered by id."""
    yield from episodes_of(reader, reader.last_attempts())


def episodes_of(reader: RunReader, rows: Sequence[EpisodeRow]) -> Iterator[Episode]:
    """Yield the episodes of `rows`, a few in memory at a time."""
    for start in range(0, len(rows), _AT_ONCE):
        yield from from_batch(reader.batch(list(rows[start : start + _AT_ONCE])))


def describe(candidates: Sequence[Candidate], selection: TeacherSelection) -> JsonObject:
    """Return the numbers of a selection: selected, dropped by reason, by source, by tag."""
    selected = [c for c in candidates if c.episode not in selection.dropped]
    reasons = Counter(selection.dropped.values())
    corrected = sum(c.corrections > 0 for c in selected)
    return {
        "episodes": len(candidates),
        "selected": len(selected),
        "dropped": {reason.value: reasons[reason] for reason in Reason if reasons[reason]},
        "failures": dict(Counter(c.error[:_SHOWN] for c in candidates if c.error).most_common(3)),
        "examples": [*_examples(candidates, selection)],
        "tasks_selected": len({c.task for c in selected}),
        "corrected": corrected,
        "corrected_share": corrected / len(selected) if selected else 0.0,
        "trial_calls_mean": sum(c.trial_calls for c in selected) / len(selected)
        if selected
        else 0.0,
        "tokens": sum(c.tokens for c in selected),
        "sampled_tokens": sum(c.sampled_tokens for c in selected),
        "by_source": _counts([c.source for c in candidates], [c.source for c in selected]),
        "by_tag": _by_tag(candidates, selected),
    }


def _examples(candidates: Sequence[Candidate], selection: TeacherSelection) -> Iterator[str]:
    """Yield the first dropped episode of each reason; failures are told by their errors."""
    seen = {Reason.NOT_FINISHED}
    for each in candidates:
        reason = selection.dropped.get(each.episode)
        if reason is not None and reason not in seen:
            seen.add(reason)
            words = reason.value.replace("_", " ")
            yield f"{each.episode} of {each.task}: {words}, reward {each.reward:.4g}"


def _by_tag(candidates: Sequence[Candidate], selected: Sequence[Candidate]) -> JsonObject:
    tags = sorted({tag for candidate in candidates for tag in candidate.tags})
    tables: JsonObject = {}
    for tag in tags:
        table = _counts(
            [c.tags.get(tag, "") for c in candidates], [c.tags.get(tag, "") for c in selected]
        )
        if len(table) <= _MOST_VALUES:
            tables[tag] = table
    return tables


def _counts(candidates: Sequence[str], selected: Sequence[str]) -> JsonObject:
    all_of, selected_of = Counter(candidates), Counter(selected)
    return {
        value: {"episodes": all_of[value], "selected": selected_of[value]}
        for value in sorted(all_of)
    }
