"""Perturbed parameters: renamed, reordered, of another type, or with an additional one."""

from dataclasses import dataclass
from random import Random

from pydantic import JsonValue

from envs.perturbation.docs import DocNoise, noisy_parameter
from envs.perturbation.levels import Recipe
from envs.perturbation.names import new_names, noisy_name
from envs.perturbation.type_drift import DRIFTS, JsonType, base_type, drifted_schema
from envs.tools import JsonObject

_BY_NAME = (
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
    "propertyNames",
    "examples",
    "example",
    "default",
)
"""Keywords next to `properties` that refer to parameters by their old names; they are removed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A perturbed schema, and what a CallRule needs to undo the change."""

    schema: JsonObject
    names: dict[str, str]
    types: dict[str, JsonType]


def perturbed_parameters(
    parameters: JsonObject, recipe: Recipe, noise: DocNoise, rng: Random
) -> Shape:
    """Return the schema of a tool's arguments with `recipe` applied to its top level only.

    Types drift only where the old value can be recovered from the new one.
    """
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return Shape(parameters, {}, {})
    old = list(properties)
    new = new_names(old, recipe.names, rng, exchange=recipe.exchange)
    fresh: dict[str, JsonValue] = {}
    types: dict[str, JsonType] = {}
    for before, name in zip(old, new, strict=True):
        item = properties[before]
        if not isinstance(item, dict):
            fresh[name] = item
            continue
        schema = noisy_parameter(item, noise, rng)
        base = base_type(schema)
        if base is not None and rng.random() < recipe.drift_share:
            types[name] = base
            schema = drifted_schema(schema, rng.choice(DRIFTS[base]))
        fresh[name] = schema
    names = dict(zip(new, old, strict=True))
    given = parameters.get("required")
    required = [name for name in new if isinstance(given, list) and names[name] in given]
    if rng.random() < recipe.added_share:
        added = noisy_name("", "nonsense", {*old, *new}, rng)
        fresh[added] = {"type": "string", "description": "Must be given; any text will do."}
        names[added] = ""
        required.append(added)
    order = list(fresh)
    rng.shuffle(order)
    whole: JsonObject = {key: item for key, item in parameters.items() if key not in _BY_NAME}
    whole["properties"] = {name: fresh[name] for name in order}
    if required or "required" in parameters:
        whole["required"] = list(required)
    return Shape(whole, names, types)
