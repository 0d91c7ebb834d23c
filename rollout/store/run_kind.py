"""What a run directory is the record of, and whether it records anything yet."""

import json
from itertools import chain

from envs.errors import StoreError
from rollout.episode import RolloutKind, kind_and_number
from rollout.store.journal import whole_lines
from rollout.store.line_checks import LineChecks
from rollout.store.run_layout import RunKind, RunLayout, read_run_info

_COMMANDS = {
    "train": RunKind.TRAIN,
    "sft": RunKind.SFT,
    "collect": RunKind.COLLECT,
    "eval": RunKind.EVAL,
}


def kind_of(layout: RunLayout) -> RunKind:
    """Return the kind of a run: what `run.json` states, else what the directory's content shows.

    Older run directories do not state it. The first that holds decides:

    1. A digest of SFT data, or a teacher's run in a folder below: SFT.
    2. The name of the first scheduled group: `g000000` is training, `t000000` a collection (of an
       SFT run's teacher where the folder is called `teacher`), a task's id an evaluation.
    3. The command line in `run.json`.

    Otherwise it is UNKNOWN. Raises StoreError for a damaged `run.json`.
    """
    info = read_run_info(layout)
    if info.kind is not RunKind.UNKNOWN:
        return info.kind
    digests = (layout.sft_data, layout.older_sft_data, RunLayout(layout.teacher).run_json)
    if any(path.exists() for path in digests):
        return RunKind.SFT
    group = _first_group(layout)
    if group is not None:
        return _kind_of_groups(layout, group)
    words = info.command.split()
    return next((_COMMANDS[word] for word in words[1:2] if word in _COMMANDS), RunKind.UNKNOWN)


def is_blank(layout: RunLayout) -> bool:
    """Whether the run has recorded nothing: no episode, no step, no checkpoint.

    A start that failed leaves such a directory; nothing is lost when another run takes its place.
    """
    teacher = RunLayout(layout.teacher)
    traces = chain(layout.segments(), layout.checkpoints.glob("*"))
    return (
        _first_group(layout) is None
        and not any(traces)
        and not whole_lines(layout.metrics)
        and not layout.model.exists()
        and not (teacher.run_json.exists() and not is_blank(teacher))
    )


def _kind_of_groups(layout: RunLayout, group: str) -> RunKind:
    match kind_and_number(group)[0]:
        case RolloutKind.TRAIN:
            return RunKind.TRAIN
        case RolloutKind.EVAL:
            return RunKind.EVAL
        case RolloutKind.COLLECT:
            is_teacher = layout.root.name == layout.teacher.name
            return RunKind.TEACHER if is_teacher else RunKind.COLLECT


def _first_group(layout: RunLayout) -> str | None:
    """Return the name of the first group in the ledger; None where nothing was scheduled.

    Raises StoreError for a damaged line before it.
    """
    checks = LineChecks(layout.ledger)
    for line in whole_lines(layout.ledger).splitlines():
        content = checks.plain(line)
        try:
            event = json.loads(content)
            if event["event"] == "leased":
                return str(event["group"])
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise StoreError(
                f"{layout.ledger}:{checks.lines}: expected a ledger event, found {content[:80]!r}"
            ) from error
    return None
