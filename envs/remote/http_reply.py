"""A response of an HTTP API as an answer to a call: text, or a word on what is no text."""

import codecs
import json
import math
import time
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from envs.remote.bounded_body import bounded_body
from envs.remote.endpoint_session import BackendReply
from envs.tools import AnswerStatus

_TEXT_TYPES = ("json", "xml", "yaml", "javascript", "graphql", "x-www-form-urlencoded", "csv")
_CONTROL = frozenset(range(32)) - {9, 10, 12, 13, 27}


async def read_reply(
    response: httpx.Response, limit: int, infra_statuses: Sequence[int], note: str
) -> BackendReply:
    """Return the answer that a response gives, of at most `limit` bytes.

    A status in `infra_statuses` is a failure of the infrastructure; `note` is then added, if there
    is one. Raises InfraError for a compression that was not asked for and is unknown.
    """
    body, truncated = await bounded_body(response.headers, response.aiter_raw(), limit)
    text = _text(response, body, truncated=truncated)
    if response.is_success:
        return BackendReply(AnswerStatus.OK, text or _empty(response), truncated)
    line = f"{response.status_code} {response.reason_phrase}".strip()
    text = f"{line}: {text}" if text else line
    if response.status_code in infra_statuses:
        return BackendReply(AnswerStatus.INFRA_ERROR, f"{text}{note}", truncated)
    return BackendReply(AnswerStatus.TOOL_ERROR, text, truncated)


def _text(response: httpx.Response, body: bytes, *, truncated: bool) -> str:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body:
        return ""
    if _is_text(kind, body):
        return _decoded(body, response.charset_encoding or "utf-8")
    size = f"more than {len(body)}" if truncated else f"{len(body)}"
    disposition = response.headers.get("content-disposition", "")
    name = disposition.partition("filename=")[2].partition(";")[0].strip().strip('"')
    named = f" {name}" if name and name.isprintable() else ""
    return f"[{kind or 'binary data'}{named}, {size} bytes]"


def _is_text(kind: str, body: bytes) -> bool:
    """Whether a body is text: by its media type, and where that does not say it, by its bytes."""
    if kind.startswith("text/") or kind.endswith(_TEXT_TYPES):
        return True
    if kind.startswith(("image/", "audio/", "video/", "font/")):
        return kind == "image/svg+xml"
    if _CONTROL & set(body):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(body)  # its end may be cut
    except UnicodeDecodeError:
        return False
    return True


def _decoded(body: bytes, charset: str) -> str:
    """Return text in the encoding that the response names, or in UTF-8 if there is no such one."""
    try:
        return body.decode(charset, "replace")
    except (LookupError, ValueError):
        return body.decode("utf-8", "replace")


def _empty(response: httpx.Response) -> str:
    """Return what is said of a success without a body: its status, and where the result is."""
    said: dict[str, int | str] = {"status": response.status_code}
    location = response.headers.get("location", "")
    if location and location.isprintable():
        said["location"] = location
    return json.dumps(said, ensure_ascii=False)


def retry_after_s(response: httpx.Response, most_s: float) -> float | None:
    """Return the seconds in the header, at most `most_s`; None without one that can be read.

    It holds a number of seconds or a date.
    """
    text = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = _seconds_until(text)
    if seconds is None or math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), most_s)


def _seconds_until(date: str) -> float | None:
    """Return the seconds until an HTTP date, negative if it has passed; None for another text."""
    try:
        until = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - time.time()
