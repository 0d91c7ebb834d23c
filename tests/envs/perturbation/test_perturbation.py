"""Perturbed tool sets: every call of a base tool can still be made, and reaches it unchanged."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from envs.config import PerturbationLevel
from envs.endpoints import HttpEndpoint, HttpOperation
from envs.errors import ConfigError
from envs.perturbation.docs import noisy_text
from envs.perturbation.names import new_names
from envs.perturbation.perturb import PerturbedEnvironment, perturb
from envs.services.adapted import AdaptedTools, FaultSchedule
from envs.services.scripted import ScriptedTools
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import ToolHopEnvironment
from envs.tools import AnswerStatus, JsonObject, ToolAnswer, ToolCall, ToolSet, ToolSpec
from tests.envs.perturbation.written_calls import as_the_policy_writes_it, calm, properties_of
from tests.random_examples import examples

LEVELS: tuple[PerturbationLevel, ...] = ("slight", "medium", "heavy", "union")
TOOLHOP = ToolHopEnvironment(ToolHopEnvConfig())


def typed_tool(name: str) -> ToolSpec:
    """A tool with a parameter of every type that can drift, and of those that cannot."""
    properties: dict[str, JsonValue] = {
        "count": {"type": "integer", "minimum": 0, "default": 3},
        "share": {"type": "number", "description": "A share."},
        "strict": {"type": "boolean", "default": False},
        "year": {"type": "string", "enum": ["1999", "2001"]},
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "odd": True,
    }
    parameters: JsonObject = {
        "type": "object",
        "properties": properties,
        "required": ["count", "year"],
        "additionalProperties": False,
    }
    return ToolSpec(name=name, description="Returns what is given. Twice.", parameters=parameters)


TYPED = ToolSet(
    tools=tuple(typed_tool(name) for name in ("alpha", "beta-2", "gamma")),
    endpoint=HttpEndpoint(
        base_url="http://localhost",
        operations=(HttpOperation(method="post", path="/"),) * 3,
        allowed_hosts=("localhost",),
    ),
)
TOOL_SETS = (
    TYPED,
    *(task.tool_set for task in TOOLHOP.all_tasks()),
    *(task.tool_set for task in CatalogEnvironment().tasks("heldout", 3, 6)),
)


def a_value(schema: JsonValue, draw: Random) -> JsonValue:
    if not isinstance(schema, dict):
        return {"anything": None}
    options = schema.get("enum")
    if isinstance(options, list):
        return draw.choice(options)
    match schema.get("type"):
        case "integer":
            least = schema.get("minimum", -(2**60))
            assert isinstance(least, int)
            return draw.randrange(least, 2**60)
        case "number":
            return draw.choice([draw.uniform(-1e9, 1e9), draw.randrange(100), -0.0, 1e300])
        case "boolean":
            return draw.random() < 0.5
        case "array":
            return ["a", "b"]
        case "object":
            return {"year": 1999}
    return draw.choice(["", "007", "true", "None", "Ünïcode 'quoted' \u2028"])


def base_calls(tool_set: ToolSet, draw: Random) -> list[ToolCall]:
    return [
        ToolCall(
            name=tool.name,
            arguments={name: a_value(item, draw) for name, item in properties_of(tool).items()},
        )
        for tool in tool_set.tools
    ]


def echo(call: ToolCall, before: list[ToolCall]) -> ToolAnswer:
    return ToolAnswer(status=AnswerStatus.OK, text=f"{len(before)}", seconds=0.5)


@settings(max_examples=examples(60), deadline=None)
@given(
    which=st.integers(0, len(TOOL_SETS) - 1),
    level=st.sampled_from(LEVELS),
    seed=st.integers(0, 2**62),
    values=st.randoms(use_true_random=False),
)
async def test_every_call_reaches_the_right_tool_with_the_right_arguments(
    which: int, level: PerturbationLevel, seed: int, values: Random
) -> None:
    base = TOOL_SETS[which]
    adapted = calm(perturb(base, level, seed))
    calls = base_calls(base, values)
    tools = ScriptedTools(echo)
    session = await AdaptedTools(tools).open_session(adapted, 1, "trial")
    answers = await session.call([as_the_policy_writes_it(adapted, call) for call in calls])
    assert [answer.text for answer in answers] == [str(i) for i in range(len(calls))]
    reached = tools.sessions[0].calls
    assert reached == calls
    assert [repr(call.arguments) for call in reached] == [
        repr({name: call.arguments[name] for name in done.arguments})
        for call, done in zip(calls, reached, strict=True)
    ]  # 1 is not 1.0 is not True


@settings(max_examples=examples(40), deadline=None)
@given(
    which=st.integers(0, len(TOOL_SETS) - 1),
    level=st.sampled_from(LEVELS),
    seed=st.integers(0, 2**62),
)
def test_names_are_valid_and_unique(which: int, level: PerturbationLevel, seed: int) -> None:
    base = TOOL_SETS[which]
    adapted = perturb(base, level, seed)
    old = {tool.name for tool in base.tools}
    names = [tool.name for tool in adapted.tools]
    assert len(set(names)) == len(names)
    assert all(name in old or re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    assert adapted.adaptation is not None
    for tool, rule in zip(adapted.tools, adapted.adaptation.rules, strict=True):
        if rule.target:
            properties = properties_of(tool)
            assert set(rule.parameters) == set(properties)
            assert set(tool.parameters.get("required", [])) <= set(properties)  # pyright: ignore[reportArgumentType]
    assert perturb(base, level, seed) == adapted
    assert (adapted.adaptation.level, adapted.adaptation.seed) == (level, seed)
    assert ToolSet.model_validate(adapted.model_dump(mode="json")).digest == adapted.digest


def test_clean_is_the_set_itself() -> None:
    assert perturb(TYPED, "clean", 5) is TYPED


@pytest.mark.parametrize(
    ("level", "what"),
    [
        ("slight", lambda old, new: old != new and abs(len(old) - len(new)) <= len(old) // 6 + 1),
        ("medium", lambda old, new: new == old[::-1] or set(old) != set(new)),
    ],
)
def test_levels_do_to_names_what_rotbench_does(level: PerturbationLevel, what) -> None:
    changed = 0
    for seed in range(20):
        adapted = perturb(TOOL_SETS[1], level, seed)
        assert adapted.adaptation is not None
        for tool, rule in zip(adapted.tools, adapted.adaptation.rules, strict=True):
            if rule.target and rule.target != tool.name:
                assert what(rule.target, tool.name), (rule.target, tool.name)
                changed += 1
    assert changed > 10


def test_heavy_exchanges_the_names_of_tools() -> None:
    adapted = perturb(TYPED, "heavy", 0)
    assert adapted.adaptation is not None
    pairs = [
        (tool.name, rule.target)
        for tool, rule in zip(adapted.tools, adapted.adaptation.rules, strict=True)
        if rule.target
    ]
    assert {name for name, _ in pairs} == {"alpha", "beta-2", "gamma"}
    assert all(name != target for name, target in pairs)


def test_repeated_and_foreign_names_get_valid_ones() -> None:
    names = new_names(["a.b", "a.b", "a.b", "class"], ("keep",), Random(1), exchange=False)
    assert names[0] == "a.b" and len(set(names)) == 4
    assert all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in names[1:])


def test_paraphrase_leaves_quoted_words_and_identifiers() -> None:
    text = "Returns the entry. Use 'find' or get_list; find it."
    fresh = noisy_text(text, "paraphrase", Random(1))
    assert fresh != text and "'find'" in fresh and "get_list" in fresh
    assert noisy_text(text, "shorten", Random(1)) == "Returns the entry."
    assert noisy_text(text, "strip", Random(1)) == ""


def failing(text: str, status: AnswerStatus = AnswerStatus.TOOL_ERROR) -> ScriptedTools:
    return ScriptedTools(lambda call, before: ToolAnswer(status=status, text=text, seconds=0.0))


def named(**parameters: str) -> ToolSet:
    """A tool `find(name, n)` that is called `dnif`, its parameters renamed."""
    spec = ToolSpec(name="find", description="", parameters={})
    base = ToolSet(tools=(spec,), sources=("",), functions=("find_it",))
    adapted = perturb(base, "medium", 0).adaptation
    assert adapted is not None
    rule = adapted.rules[0].model_copy(
        update={"target": "find", "parameters": parameters, "types": {"k": "integer"}}
    )
    alone = adapted.model_copy(update={"rules": (rule,)})
    return ToolSet(tools=(spec.model_copy(update={"name": "dnif"}),), adaptation=alone)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("find() got an unexpected keyword argument 'age'", "dnif() got an unexpected keyword"),
        ("find_it() missing argument: 'name'", "dnif() missing argument: 'eman'"),
        ("KeyError: 'n'", "KeyError: 'k'"),
        ("n=3 is an odd n", "k=3 is an odd n"),
        ("finding names failed", "finding names failed"),
    ],
)
async def test_errors_speak_of_the_policys_names(theirs: str, ours: str) -> None:
    session = await AdaptedTools(failing(theirs)).open_session(
        named(eman="name", k="n"), 1, "trial"
    )
    [answer] = await session.call([ToolCall(name="dnif", arguments={})])
    assert answer.text.startswith(ours)


async def test_values_are_not_translated() -> None:
    tools = failing("the name find", AnswerStatus.OK)
    session = await AdaptedTools(tools).open_session(named(eman="name"), 1, "trial")
    [answer] = await session.call([ToolCall(name="dnif", arguments={})])
    assert answer.text == "the name find"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "x"}, "unexpected argument 'name'"),
        ({"k": "three"}, "argument 'k': expected a whole number, found \"three\""),
        ({"k": [3]}, "expected a whole number"),
        ({"k": True}, "found true"),
    ],
)
async def test_calls_that_mean_nothing_are_the_policys_errors(
    arguments: JsonObject, words: str
) -> None:
    tools = ScriptedTools(echo)
    session = await AdaptedTools(tools).open_session(named(eman="name", k="n"), 1, "trial")
    [answer] = await session.call([ToolCall(name="dnif", arguments=arguments)])
    assert answer.status is AnswerStatus.TOOL_ERROR and words in answer.text
    assert tools.sessions[0].calls == []


async def test_undocumented_arguments_pass() -> None:
    tools = ScriptedTools(echo)
    session = await AdaptedTools(tools).open_session(named(eman="name"), 1, "trial")
    await session.call([ToolCall(name="dnif", arguments={"key": "gold", "eman": "x"})])
    assert tools.sessions[0].calls[0].arguments == {"key": "gold", "name": "x"}


async def test_distractors_answer_without_the_base() -> None:
    adapted = calm(perturb(TYPED, "heavy", 2))
    assert adapted.adaptation is not None
    decoys = [
        (tool.name, rule.reply)
        for tool, rule in zip(adapted.tools, adapted.adaptation.rules, strict=True)
        if not rule.target
    ]
    assert len(decoys) == 2
    tools = ScriptedTools(echo)
    session = await AdaptedTools(tools).open_session(adapted, 1, "trial")
    answers = await session.call([ToolCall(name=name, arguments={}) for name, _ in decoys])
    assert [answer.text for answer in answers] == [reply for _, reply in decoys]
    assert tools.sessions[0].calls == []


async def test_weather_is_sampled_from_the_seed_and_the_number_of_the_call() -> None:
    adapted = perturb(TYPED, "union", 2)
    assert adapted.adaptation is not None
    weather = FaultSchedule(adapted.adaptation, 7)
    faults = [i for i in range(400) if weather.fault(i)]
    slow = [i for i in range(400) if weather.latency_s(i)]
    assert 20 <= len(faults) <= 60 and 20 <= len(slow) <= 60 and faults != slow
    assert faults != [i for i in range(400) if FaultSchedule(adapted.adaptation, 8).fault(i)]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    call = as_the_policy_writes_it(adapted, base_calls(TYPED, Random(1))[0])
    answers: list[ToolAnswer] = []
    for size in (1, 3):  # however the calls are bundled
        tools = ScriptedTools(echo)
        session = await AdaptedTools(tools, sleep).open_session(adapted, 7, "execution")
        answers = [a for i in range(0, 60, size) for a in await session.call([call] * size)]
        found = [i for i, a in enumerate(answers) if a.status is AnswerStatus.TOOL_ERROR]
        assert found == [i for i in faults if i < 60]
        assert len(tools.sessions[0].calls) == 60 - len(found)
        late = [i for i, answer in enumerate(answers) if answer.seconds in (0.1, 0.6)]
        assert late == [i for i in slow if i < 60]
    assert sum(slept) == pytest.approx(2 * 0.1 * len([i for i in slow if i < 60]))


async def test_adaptations_stack() -> None:
    base = TOOL_SETS[1]
    once = calm(perturb(base, "medium", 1))
    twice = calm(perturb(once, "heavy", 2))
    tools = ScriptedTools(echo)
    session = await AdaptedTools(tools).open_session(twice, 1, "trial")
    wanted = base_calls(base, Random(3))[0]
    await session.call([as_the_policy_writes_it(twice, as_the_policy_writes_it(once, wanted))])
    assert tools.sessions[0].calls == [wanted]
    assert twice.root is base and base.root is base


def test_perturbed_tasks_say_so_and_differ_from_each_other() -> None:
    environment = PerturbedEnvironment(TOOLHOP, "medium", 4)
    tasks = environment.all_tasks()
    assert [task.question for task in tasks] == [task.question for task in TOOLHOP.all_tasks()]
    assert tasks[0].tags["perturbation"] == "medium"
    assert tasks[0].tags["perturbation_seed"] == "4"
    seeds = {task.tool_set.adaptation.seed for task in tasks if task.tool_set.adaptation}
    assert len(seeds) == len(tasks)
    split = tasks[0].split
    assert tasks[0] in environment.tasks(split, 1, None)
    with pytest.raises(ConfigError, match="without end"):
        PerturbedEnvironment(CatalogEnvironment(), "slight", 1).all_tasks()
