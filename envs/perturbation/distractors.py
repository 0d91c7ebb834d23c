"""Distractors: tools that look useful but return the same text for every call."""

from collections.abc import Collection
from random import Random

from envs.perturbation.names import LONGEST_NAME, nonsense
from envs.tools import CallRule, JsonObject, ToolSet, ToolSpec

_TEXT: JsonObject = {"type": "string"}
_WHOLE: JsonObject = {"type": "integer"}

_POOL: tuple[tuple[str, str, dict[str, JsonObject], str], ...] = (
    ("search_web", "Search the web.", {"query": _TEXT}, "[]"),
    ("get_weather", "Get the weather of a city.", {"city": _TEXT}, '{"sky": "unknown"}'),
    ("send_email", "Send an e-mail.", {"to": _TEXT, "body": _TEXT}, "queued"),
    ("lookup_record", "Look up a record by its number.", {"number": _WHOLE}, "no such record"),
    ("translate_text", "Translate a text.", {"text": _TEXT, "to": _TEXT}, "not available"),
    ("convert_units", "Convert a quantity.", {"quantity": _TEXT, "unit": _TEXT}, "unknown unit"),
    ("get_time", "Get the time of a place.", {"place": _TEXT}, "unknown place"),
    ("ask_user", "Ask the user for guidance.", {"question": _TEXT}, "no reply"),
    ("list_files", "List the files of a folder.", {"folder": _TEXT}, "[]"),
    ("run_query", "Run a query on the data base.", {"query": _TEXT}, "0 rows"),
)
_SUFFIXES = ("_v2", "_old", "_lite", "_batch")
_TWIN_REPLY = "no result"


def distractor(base: ToolSet, taken: Collection[str], rng: Random) -> tuple[ToolSpec, CallRule]:
    """Return a tool that no task needs, with a name that is not in `taken`, and its fixed reply.

    With equal chances it comes from a fixed pool, or copies the description and parameters of a
    tool of `base` under a similar name.
    """
    if base.tools and rng.random() < 0.5:
        twin = rng.choice(base.tools)
        name = twin.name[: LONGEST_NAME - 8] + rng.choice(_SUFFIXES)
        spec, reply = twin.model_copy(update={"name": name}), _TWIN_REPLY
    else:
        name, description, properties, reply = rng.choice(_POOL)
        parameters: JsonObject = {
            "type": "object",
            "properties": dict(properties),
            "required": list(properties),
        }
        spec = ToolSpec(name=name, description=description, parameters=parameters)
    while spec.name in taken:
        spec = spec.model_copy(update={"name": nonsense(rng)})
    return spec, CallRule(target="", reply=reply)
