"""Two or more episodes side by side: turns, then tokens, rewards and calls."""

from collections import Counter
from itertools import zip_longest
from typing import Any, cast

import pyarrow as pa

from cluster.dashboard.episodes.numbers import numbers_of, phase_name
from cluster.dashboard.episodes.stored import Stored
from cluster.dashboard.episodes.transcripts import text_of
from cluster.dashboard.models.detail import Delta, Diff, DiffToken, DiffTurn

_CONTEXT = 60
_LONGEST = 4_000


def diff_of(sides: list[Stored]) -> Diff:
    """Compare episodes, usually siblings."""
    records = [one.record() for one in sides]
    turns = [
        _turn(number, cast(tuple[Any, ...], found))
        for number, found in enumerate(zip_longest(*(record["turns"] for record in records)))
    ]
    return Diff(
        rows=[one.row for one in sides],
        same_task=len({one.row.task for one in sides}) == 1,
        turns=turns,
        first_divergent_turn=next((turn.number for turn in turns if not turn.same), None),
        first_divergent_token=_first_token(sides, records),
        reward_parts=_parts(sides, records),
        calls=_calls(records),
        numbers=_numbers(sides, records),
    )


def _turn(number: int, found: tuple[Any, ...]) -> DiffTurn:
    texts = [None if turn is None else turn["text"] or "" for turn in found]
    return DiffTurn(
        number=number,
        same=len(set(texts)) == 1,
        sides=[
            None if text is None else text_of(text, f"turns/{number}/text", _LONGEST)
            for text in texts
        ],
        phases=[None if turn is None else phase_name(turn["phase"]) for turn in found],
        first_difference=_first_difference([text for text in texts if text is not None]),
    )


def _first_difference(texts: list[str]) -> int | None:
    if len(set(texts)) < 2:
        return None
    shortest = min(map(len, texts))
    first = texts[0]
    return next(
        (i for i in range(shortest) if any(text[i] != first[i] for text in texts[1:])), shortest
    )


def _first_token(sides: list[Stored], records: list[dict[str, Any]]) -> DiffToken:
    rows = [
        cast(pa.ListArray, one.batch.column("token_ids")).flatten().to_pylist() for one in sides
    ]
    shortest = min(map(len, rows))
    first = rows[0]
    position = next(
        (i for i in range(shortest) if any(row[i] != first[i] for row in rows[1:])), shortest
    )
    if len({len(row) for row in rows}) == 1 and position == shortest:
        return DiffToken(position=None, turns=[None] * len(rows), contexts=[""] * len(rows))
    turns = [_turn_at(record, position) for record in records]
    contexts = [
        "" if number is None else _around(record["turns"][number], position)
        for number, record in zip(turns, records, strict=True)
    ]
    return DiffToken(position=position, turns=turns, contexts=contexts)


def _turn_at(record: dict[str, Any], position: int) -> int | None:
    return next(
        (
            number
            for number, turn in enumerate(record["turns"])
            if turn["start"] <= position < turn["end"]
        ),
        None,
    )


def _around(turn: dict[str, Any], position: int) -> str:
    """Return the text about where a token stands, by its share of the turn's tokens."""
    text = turn["text"] or ""
    share = (position - turn["start"]) / max(turn["end"] - turn["start"], 1)
    middle = int(share * len(text))
    return text[max(middle - _CONTEXT, 0) : middle + _CONTEXT]


def _parts(sides: list[Stored], records: list[dict[str, Any]]) -> list[Delta]:
    named = [{part.name: part.value for part in numbers_of(r["reward_parts"])} for r in records]
    names = list(dict.fromkeys(name for parts in named for name in parts))
    rewards = _delta("reward", [one.row.reward for one in sides])
    advantages = _delta("advantage", [one.row.advantage for one in sides])
    return [
        rewards,
        advantages,
        *(_delta(name, [parts.get(name) for parts in named]) for name in names),
    ]


def _calls(records: list[dict[str, Any]]) -> list[Delta]:
    counted = [
        Counter(
            f"{call['name']} ({call['purpose']})"
            for turn in record["turns"]
            for call in turn["calls"]
        )
        for record in records
    ]
    names = sorted({name for counts in counted for name in counts})
    return [_delta(name, [float(counts[name]) for counts in counted]) for name in names]


def _numbers(sides: list[Stored], records: list[dict[str, Any]]) -> list[Delta]:
    return [
        _delta("tokens", [float(one.row.tokens) for one in sides]),
        _delta("turns", [float(len(record["turns"])) for record in records]),
        _delta("seconds", [one.row.wall_s for one in sides]),
        _delta("generating (s)", [record["generate_s"] for record in records]),
        _delta("in tools (s)", [record["tool_s"] for record in records]),
    ]


def _delta(name: str, values: list[float | None]) -> Delta:
    first, last = values[0], values[-1]
    change = None if first is None or last is None else last - first
    return Delta(name=name, values=values, change=change)
