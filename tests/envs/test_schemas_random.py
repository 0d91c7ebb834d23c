"""Random schemas, sensible and not: everything that reads one takes it, and examples pass."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.argument_check import check_arguments
from envs.example_arguments import example_arguments
from envs.perturbation.perturb import perturb
from envs.schema_repair import repaired
from envs.tool_schemas import without_noise
from envs.tools import JsonObject, ToolSet, ToolSpec
from tests.random_examples import examples

QUICK = settings(
    max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
NAMES = st.sampled_from(["a", "b", "x-c", "type", "$ref", "näme", ""])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
)
JSON = st.recursive(
    SCALARS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from(
    ["string", "integer", "number", "boolean", "object", "array", "null", "str", 7, None]
)
LIMITS = [
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength"),
    *("maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "uniqueItems"),
]
REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/nowhere", "a.json", "%", 3])
PATTERNS = st.sampled_from(["^a", "(", "(a+)+$", "[", "\\d{2}", 3])


def schemas(inner: st.SearchStrategy) -> st.SearchStrategy:
    named = st.dictionaries(NAMES, inner, max_size=3)
    keywords = {
        **dict.fromkeys(LIMITS, SCALARS),
        **dict.fromkeys(["properties", "patternProperties", "$defs", "definitions"], named | JSON),
        **dict.fromkeys(["allOf", "anyOf", "oneOf", "prefixItems"], st.lists(inner, max_size=3)),
        **dict.fromkeys(["items", "additionalProperties", "not", "if", "contains"], inner | JSON),
        **dict.fromkeys(["default", "const", "example", "examples", "title", "nullable"], JSON),
        "type": TYPES | st.lists(TYPES, max_size=3),
        "required": st.lists(NAMES, max_size=3) | JSON,
        "enum": st.lists(JSON, max_size=3) | JSON,
        "$ref": REFERENCES,
        "pattern": PATTERNS,
        "format": st.sampled_from(["date", "email", "nonsense"]),
        "$schema": JSON,
    }
    return st.fixed_dictionaries({}, optional=keywords)


SCHEMAS = st.recursive(st.booleans() | JSON, schemas, max_leaves=8).filter(
    lambda schema: isinstance(schema, dict)
)


@QUICK
@given(schema=SCHEMAS, arguments=st.dictionaries(NAMES, JSON, max_size=4))
def test_any_schema_is_checked_and_shown(schema: JsonObject, arguments: JsonObject) -> None:
    spec = ToolSpec(name="tool", description="", parameters=schema)
    verdict = check_arguments(spec, arguments)
    assert verdict is None or (verdict and len(verdict) < 4_000)
    assert repaired(repaired(schema)) == repaired(schema)
    clean = without_noise(schema, "tool")
    assert "$schema" not in clean
    assert without_noise(clean, "tool") == clean
    example = example_arguments(spec)
    assert example is None or check_arguments(spec, example) is None
    perturb(ToolSet(tools=(spec,), sources=("",), functions=("f",)), "union", 3)


def well_formed(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(
            lambda named: {"type": "object", "properties": named, "required": list(named)},
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        ),
        st.builds(lambda a: {"anyOf": [{"type": "null"}, a]}, inner),
    )


SIMPLE = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean")]),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 9),
    ),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-9, 9)),
    st.builds(lambda step: {"type": "integer", "multipleOf": step}, st.integers(1, 9)),
    st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=3).map(
        lambda options: {"enum": options}
    ),
)


@QUICK
@given(
    properties=st.dictionaries(
        st.sampled_from("abcd"), st.recursive(SIMPLE, well_formed, max_leaves=5), max_size=4
    )
)
def test_a_sensible_schema_has_an_example_that_passes(properties: JsonObject) -> None:
    parameters: JsonObject = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    spec = ToolSpec(name="tool", description="", parameters=parameters)
    assert example_arguments(spec) is not None
