"""How large a document may be, with what its aliases repeat.

Aliases of YAML let a page of text stand for more values than a machine can hold. So the values are
counted as if each alias were written out, which takes one look at each that was written.
"""

from pydantic import JsonValue

from envs.errors import DataFileError

DOCUMENT_BYTES = 64 * 2**20
_VALUES = 5_000_000
_CHARACTERS = 2**27
_DEPTH = 200


def check_text(text: str) -> None:
    """Raise DataFileError for a document that is too long to be read."""
    if len(text) > DOCUMENT_BYTES:
        raise DataFileError(
            f"expected a document of at most {DOCUMENT_BYTES} characters, found {len(text)}: "
            "leave out what no tool needs"
        )


def check_values(root: JsonValue) -> None:
    """Raise DataFileError for too many or too deep values, and for one that contains itself."""
    sizes: dict[int, tuple[int, int, int]] = {}
    """Values, characters, and depth of each container that was looked at."""
    above: set[int] = set()
    pending: list[tuple[JsonValue, bool]] = [(root, False)]
    while pending:
        node, seen = pending.pop()
        if not isinstance(node, dict | list) or id(node) in sizes:
            continue
        inner = list(node.values()) if isinstance(node, dict) else node
        if seen:
            above.discard(id(node))
            sizes[id(node)] = _size(node, inner, sizes)
            continue
        if id(node) in above:
            raise DataFileError("expected a document that ends, found a value that contains itself")
        if len(above) >= _DEPTH:
            raise DataFileError(f"expected values nested at most {_DEPTH} deep, found deeper ones")
        above.add(id(node))
        pending.append((node, True))
        pending += [(item, False) for item in inner]


def _size(
    node: dict[str, JsonValue] | list[JsonValue],
    inner: list[JsonValue],
    sizes: dict[int, tuple[int, int, int]],
) -> tuple[int, int, int]:
    values, depth = 1, 0
    characters = sum(map(len, node)) if isinstance(node, dict) else 0
    for item in inner:
        if isinstance(item, dict | list):
            more, long, deep = sizes[id(item)]
            values, characters, depth = values + more, characters + long, max(depth, deep)
        else:
            values += 1
            characters += len(item) if isinstance(item, str) else 0
    if values > _VALUES or characters > _CHARACTERS:
        raise DataFileError(
            f"expected at most {_VALUES} values and {_CHARACTERS} characters once aliases are "
            "followed, found more: write the document without aliases that repeat each other"
        )
    if depth >= _DEPTH:
        raise DataFileError(f"expected values nested at most {_DEPTH} deep, found deeper ones")
    return values, characters, depth + 1
