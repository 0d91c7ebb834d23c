"""One episode: transcript, texts in full, values per token; and the difference of several."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from cluster.dashboard.api.context import (
    AttemptQuery,
    EpisodeQuery,
    IndexDep,
    RunDep,
    tagged,
)
from cluster.dashboard.episodes.diffs import diff_of
from cluster.dashboard.episodes.episode_rows import uids_of
from cluster.dashboard.episodes.numbers import numbers_of
from cluster.dashboard.episodes.stored import Stored, find_stored
from cluster.dashboard.episodes.token_columns import (
    TokenColumns,
    consumed_at,
    learned_of,
    token_columns,
)
from cluster.dashboard.episodes.token_text import find_tokenizer, rendered
from cluster.dashboard.episodes.transcripts import (
    messages_before,
    scorer_of,
    text_of,
    text_part,
    turns_of,
)
from cluster.dashboard.filters.fields import FLAGS
from cluster.dashboard.index.database import rows_of
from cluster.dashboard.index.library import KnownRun
from cluster.dashboard.models import detail
from cluster.dashboard.problems import ApiError

router = APIRouter(tags=["episode"])

ARROW = "application/vnd.apache.arrow.stream"
_MOST_SIDES = 8
_SAMPLING = ("temperature", "top_p", "top_k")


@router.get("/runs/{run}/episode", response_model=detail.EpisodeDetail)
def episode(
    request: Request,
    response: Response,
    known: RunDep,
    index: IndexDep,
    id: EpisodeQuery,
    attempt: AttemptQuery = None,
) -> Any:
    """Return an episode as it is read: turns, calls, rewards, and which overlays there are."""
    with index.cursor() as connection:
        one = find_stored(connection, index.files, id, attempt)
        siblings = rows_of(
            connection,
            "SELECT episode, max(attempt), any_value(sample_index), arg_max(reward, attempt), "
            "arg_max(outcome, attempt) FROM episodes WHERE grp = ? AND episode <> ? "
            "GROUP BY episode ORDER BY 3, 1 LIMIT 256",
            (one.row.group, id),
        )
        attempts = [number for number, _ in uids_of(connection, id)]
    learned = learned_of(known.layout, one)
    record = one.record()
    names = ("episode", "attempt", "sample_index", "reward", "outcome")
    answer = detail.EpisodeDetail(
        row=one.row,
        error=text_of(record["error"], "error"),
        question=text_of(record["question"], "question"),
        messages_before=messages_before(record),
        turns=turns_of(record),
        scorer=scorer_of(one.row, record),
        tags=dict(record["tags"]),
        extra=numbers_of(record["extra"]),
        sampling=numbers_of([(name, record[name]) for name in _SAMPLING]),
        seed=str(record["seed"]),
        worker=record["worker"],
        tool_server=record["tool_server"],
        isolation=record["isolation"],
        consumed_at=consumed_at(one, learned),
        overlays=token_columns(one, learned).overlays(),
        siblings=[detail.Neighbour(**dict(zip(names, row, strict=True))) for row in siblings],
        attempts=attempts,
        flag_notes={name: FLAGS[name] for name in one.row.flags or []},
    )
    return tagged(request, response, answer)


@router.get("/runs/{run}/episode/text", response_model=detail.TextPart)
def text(
    index: IndexDep,
    id: EpisodeQuery,
    part: Annotated[str, Query(max_length=80, description="Name of a text: its `part`.")],
    attempt: AttemptQuery = None,
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    limit: Annotated[int, Query(ge=1, le=1_000_000, description="Characters.")] = 200_000,
) -> detail.TextPart:
    """Return a text from a character on, as it is stored."""
    with index.cursor() as connection:
        one = find_stored(connection, index.files, id, attempt)
    return text_part(one.record(), part, offset, limit)


@router.get(
    "/runs/{run}/episode/tokens",
    response_model=detail.TokenColumns,
    responses={200: {"content": {ARROW: {}}}},
)
def tokens(
    request: Request,
    known: RunDep,
    index: IndexDep,
    id: EpisodeQuery,
    attempt: AttemptQuery = None,
    texts: Annotated[bool, Query(description="Also render each token, in the JSON form.")] = False,
) -> Any:
    """Return the columns of all tokens: an Arrow stream, or JSON where that is asked for."""
    with index.cursor() as connection:
        one = find_stored(connection, index.files, id, attempt)
    columns = token_columns(one, learned_of(known.layout, one))
    accepted = request.headers.get("accept", "")
    if "json" in accepted and ARROW not in accepted:
        return _as_json(known, columns, with_text=texts)
    return Response(columns.arrow(), media_type=ARROW)


def _as_json(known: KnownRun, columns: TokenColumns, *, with_text: bool) -> Response:
    table = columns.table
    found = {name: table[name].to_pylist() for name in table.column_names if name != "phase"}
    texts, reason = _texts(known, found["token_id"]) if with_text else (None, "not asked for")
    answer = detail.TokenColumns(
        phase=table["phase"].to_pylist(), text=texts, text_reason=reason, **found
    )
    return Response(answer.model_dump_json(), media_type="application/json")


def _texts(known: KnownRun, token_ids: list[int]) -> tuple[list[str] | None, str]:
    named = known.facts.setting("model", "path")
    folders = [known.layout.model]
    if isinstance(named, str) and named:
        folders.append(Path(named))
    path = find_tokenizer(tuple(folders))
    if path is None:
        return None, f"no tokenizer.json in {' or '.join(map(str, folders))} on this machine"
    found = rendered(path, token_ids)
    return found, "" if found is not None else f"{path} cannot be read"


@router.get("/runs/{run}/diff", response_model=detail.Diff)
def diff(
    index: IndexDep,
    id: Annotated[
        list[str], Query(min_length=2, max_length=_MOST_SIDES, description="Episodes, in order.")
    ],
) -> detail.Diff:
    """Compare two or more episodes: turns, the first token that differs, rewards and calls."""
    if any(len(name) > 500 for name in id):
        raise ApiError(422, "wrong-value", "an id is longer than 500 characters", "shorten it")
    with index.cursor() as connection:
        sides: list[Stored] = [find_stored(connection, index.files, name) for name in id]
    return diff_of(sides)
