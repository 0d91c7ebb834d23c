"""Calls of a base tool as a policy writes them that sees the perturbed tools."""

from envs.argument_check import check_arguments
from envs.perturbation.type_drift import drifted
from envs.tools import JsonObject, ToolCall, ToolSet, ToolSpec


def properties_of(tool: ToolSpec) -> JsonObject:
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) else {}


def as_the_policy_writes_it(adapted: ToolSet, call: ToolCall) -> ToolCall:
    """The call of the adapted set that means `call`, made from the adapted schema alone."""
    assert adapted.adaptation is not None
    rules = zip(adapted.tools, adapted.adaptation.rules, strict=True)
    tool, rule = next(pair for pair in rules if pair[1].target == call.name)
    arguments: JsonObject = {}
    for name, item in properties_of(tool).items():
        base = rule.parameters[name]
        if not base:
            arguments[name] = "any text"
        elif base in call.arguments:
            value = call.arguments[base]
            kind = item["type"] if isinstance(item, dict) and name in rule.types else ""
            arguments[name] = drifted(value, kind) if kind else value  # pyright: ignore[reportArgumentType]
    assert check_arguments(tool, arguments) is None, (tool, arguments)
    return ToolCall(name=tool.name, arguments=arguments)


def calm(tool_set: ToolSet) -> ToolSet:
    """The set without injected faults and delays."""
    assert tool_set.adaptation is not None
    weather = {"fault_rate": 0.0, "slow_rate": 0.0}
    return tool_set.model_copy(
        update={"adaptation": tool_set.adaptation.model_copy(update=weather)}
    )
