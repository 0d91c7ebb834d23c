"""The state that a user gives a simulated API: a JSON object with a value for each path."""

import json
import re
from collections.abc import Sequence

from envs.errors import DataFileError
from envs.sources.openapi.operations import ApiOperation
from envs.tools import JsonObject

_SHOWN = 12


def read_fixtures(text: str, operations: Sequence[ApiOperation]) -> JsonObject:
    """Return the fixtures, by path. Raises DataFileError for a path that nothing reads.

    A path is one of the document, or one with its parameters filled in (`/books/3/loans`). The
    value is the list of a collection's items, or what a GET of that path answers.
    """
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"fixtures: invalid JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataFileError("fixtures: expected an object with a value for each path")
    paths = sorted({operation.request.path for operation in operations})
    collections = {path.rpartition("/")[0] for path in paths if path.endswith("}")}
    for path, value in found.items():
        template = next((known for known in paths if _fits(path, known)), None)
        above = next((known for known in collections if known and _fits(path, known)), None)
        if template is None and above is None:
            shown = ", ".join(paths[:_SHOWN])
            raise DataFileError(
                f"fixtures: expected a path of an operation ({shown}), found {path!r}"
            )
        if above is not None and isinstance(value, list):
            wrong = next((item for item in value if not isinstance(item, dict)), None)
            if wrong is not None:
                raise DataFileError(f"fixtures, {path}: expected objects, found {wrong!r}")
    return found


def _fits(path: str, template: str) -> bool:
    """Whether `path` is `template`, or has values in place of its parameters."""
    if path == template:
        return True
    parts = re.split(r"{[^{}]*}", template)
    return re.fullmatch("[^/]+".join(map(re.escape, parts)), path) is not None
