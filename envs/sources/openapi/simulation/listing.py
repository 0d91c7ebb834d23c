"""Lists of stored items: filters, pages, and the object around them; part of a simulated API's
source.
"""

import json
import re
from typing import Any

from envs.sources.openapi.simulation.resources import list_name
from envs.sources.openapi.simulation.values import alike, blank_value, copied

_COUNTS = ("total", "count", "total_results", "total_count", "totalCount", "totalResults")
_SEARCHES = ("q", "query", "search")
_SIZES = ("limit", "per_page", "page_size", "pageSize", "perPage", "size")
_PAGES = ("page", "pageNumber", "page_number")
_BOUNDS = {"min": 1, "gte": 1, "gt": 1, "from": 1, "max": -1, "lte": -1, "lt": -1, "to": -1}
_STRICT = ("gt", "lt")


def filtered(items: list, query: dict) -> list:
    """Return the items that fit every argument of `query` that names a field of theirs."""
    for name, value in query.items():
        if name in _SEARCHES:
            items = [item for item in items if str(value).lower() in json.dumps(item).lower()]
            continue
        field, bound = _field_and_bound(name, items)
        if field and isinstance(value, dict):
            for inner, limit in value.items():
                items = [item for item in items if _within(reading(item, field), inner, limit)]
        elif field:
            items = [item for item in items if _fits(reading(item, field), bound, value)]
    return items


def reading(item: Any, field: list) -> Any:
    """Return the value at a field, which may be one of an object inside the item."""
    for key in field:
        item = item.get(key) if isinstance(item, dict) else None
    return item


def field_of(name: str, items: list) -> list:
    """Return the field that an argument of this name is about; empty if there is none.

    Spellings of one name are the same (`petId`, `pet_id`); a plural names a field in the singular,
    and `category_id` the `id` of the item's `category`.
    """
    known = [item for item in items if isinstance(item, dict)]
    for wanted in (_bare(name), _bare(name).removesuffix("s")):
        for item in known:
            for key, value in item.items():
                if _bare(key) in (wanted, f"{wanted}s"):
                    return [key]
                if isinstance(value, dict):
                    for inner in value:
                        if _bare(key) + _bare(inner) == wanted:
                            return [key, inner]
    return []


def shaped_list(operation: dict, items: list, query: dict) -> Any:
    """Return the page of `items` that `query` asks for, in the form of the operation's response."""
    total, page = len(items), _page_number(query)
    items = _page(items, query)
    name = list_name(operation)
    if name is None:
        return copied(items)
    properties = operation["schema"].get("properties", {})
    shaped = {}
    for key, below in properties.items() or [(name, {})]:
        shaped[key] = total if key in _COUNTS else page if key == "page" else blank_value(below)
    shaped[name] = copied(items)
    return shaped


def listed_example(operation: dict, example: Any, query: dict) -> Any:
    """Return an example; of a list in it, the page and the items that `query` asks for."""
    if isinstance(example, list):
        return copied(_page(filtered(example, query), query))
    name = list_name(operation)
    if isinstance(example, dict) and isinstance(example.get(name), list):
        return {**copied(example), name: copied(_page(filtered(example[name], query), query))}
    return copied(example)


def fitting_list(items: list, query: dict) -> list:
    """Return sampled items, changed where `query` names a field of theirs: it asked for those."""
    for item in items:
        for name, value in query.items():
            field = field_of(name, [item])
            if len(field) == 1 and isinstance(value, (str, int, float, bool)):
                old = item[field[0]]
                item[field[0]] = value if isinstance(value, type(old)) else old
    return _page(items, query)


def _page_number(query: dict) -> int:
    return next((query[name] for name in _PAGES if isinstance(query.get(name), int)), 1)


def _page(items: list, query: dict) -> list:
    size = next((query[name] for name in _SIZES if isinstance(query.get(name), int)), 0)
    offset = query.get("offset", query.get("skip"))
    start = offset if isinstance(offset, int) and offset > 0 else 0
    if size <= 0:
        return items[start:]
    start += max(_page_number(query) - 1, 0) * size
    return items[start : start + size]


def _field_and_bound(name: str, items: list) -> tuple:
    field = field_of(name, items)
    if field:
        return field, ""
    words = re.split(r"[_\[\].-]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("]"))
    for bound, rest in ((words[0], words[1:]), (words[-1], words[:-1])):
        if bound in _BOUNDS and rest:
            field = field_of("_".join(rest), items)
            if field:
                return field, bound
    return [], ""


def _fits(own: Any, bound: str, wanted: Any) -> bool:
    return _within(own, bound, wanted) if bound else _matches(own, wanted)


def _within(own: Any, bound: str, limit: Any) -> bool:
    sign = _BOUNDS.get(bound, 0)
    if not sign:
        return _matches(own, limit)
    try:
        number = float(own) - float(limit)
    except (TypeError, ValueError):
        one, other = str(own), str(limit)
        number = (one > other) - (one < other)
    return number * sign > 0 if bound in _STRICT else number * sign >= 0


def _matches(own: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_matches(own, one) for one in wanted)
    if isinstance(own, list):
        return any(_matches(one, wanted) for one in own)
    if isinstance(own, dict):
        return any(alike(own[key], wanted) for key in ("name", "id", "value") if key in own)
    if isinstance(wanted, str) and "," in wanted and "," not in str(own):
        return any(alike(own, one.strip()) for one in wanted.split(","))
    return alike(own, wanted)


def _bare(name: str) -> str:
    return re.sub(r"[^0-9a-z]", "", name.lower())
