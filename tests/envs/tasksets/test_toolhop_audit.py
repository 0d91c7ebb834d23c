"""The audit of ToolHop files: a bounded, seeded search whose calls really run in the sandbox."""

import json
from itertools import islice
from pathlib import Path

import pytest

from envs.argument_check import check_arguments
from envs.config import IsolationConfig, ToolServerConfig
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.tasksets.toolhop.audit import Audit, audit
from envs.tasksets.toolhop.environment import OWN_TASKS
from envs.tasksets.toolhop.example_calls import example_calls
from envs.tasksets.toolhop.questions import read_questions
from envs.tasksets.toolhop.search import candidate_calls
from envs.tools import AnswerStatus, ToolSpec

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "toolhop" / "ToolHop-sample60.json"
CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))
SPEC = ToolSpec(
    name="find",
    description="",
    parameters={
        "type": "object",
        "required": ["who", "what"],
        "properties": {
            "who": {"type": "string"},
            "what": {"type": "string", "enum": ["birth", "death"]},
            "deep": {"type": "object", "properties": {"year": {"type": ["integer", "array"]}}},
            "many": {"type": "array", "items": {"type": "number", "minimum": 3}},
        },
    },
)


def drawn(limit: int, seed: int) -> list:
    return list(candidate_calls(SPEC, ["When did Ada Byron die?", "1852"], limit, seed))


def test_calls_fit_the_schema_and_name_what_the_question_names() -> None:
    calls = drawn(40, 1)
    assert [check_arguments(SPEC, call) for call in calls] == [None] * 40
    assert {"who": "Ada Byron", "what": "death"} in calls
    assert any(call.get("deep") == {"year": 1852} for call in calls)
    assert len({repr(sorted(call.items())) for call in calls}) == 40


def test_same_seed_gives_the_same_calls() -> None:
    assert drawn(40, 1) == drawn(40, 1)
    assert drawn(40, 1) != drawn(40, 2)


def test_search_ends_where_there_is_nothing_left_to_try() -> None:
    spec = SPEC.model_copy(update={"parameters": {"type": "object", "properties": {}}})
    assert list(islice(candidate_calls(spec, [], 40, 0), 41)) == [{}]


SOURCE = """
def find(name, year=1, **more):
    find(name='inside')
    return name

class Other:
    seen = find('in a class')

settings = {'year': 3}
print(find('Ada', year=2))
if __name__ == '__main__':
    found = [find(name=each) for each in ['a loop']]
    who = ('x', 1)
    find(name=who, deep={'k': None})
find(**settings)
find(name=open('x'))
find(name={1, 2})
find('Ada', 2, 3)
"""


def test_example_calls_are_read_from_the_source() -> None:
    assert list(example_calls(SOURCE, "find")) == [
        {"name": "Ada", "year": 2},
        {"name": ["x", 1], "deep": {"k": None}},
        {"year": 3},
    ]
    assert list(example_calls(SOURCE, "other")) == []
    assert list(example_calls("def find(:", "find")) == []


async def test_the_call_that_a_source_shows_is_tried(tmp_path: Path) -> None:
    tool = {
        "name": "motto",
        "description": "",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    }
    source = "def motto(key):\n    return 'Per aspera' if key == 'zq7' else 'Unknown'\nmotto('zq7')"
    question = {
        "id": 1,
        "question": "Which motto?",
        "answer": "Per aspera",
        "sub_task": {"Which motto is it?": "Per aspera"},
        "tools": {"Which motto is it?": tool},
        "functions": [source],
        "domain": "x",
        "answer_type": "x",
    }
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([question]))
    counts = (await run(path, 5)).to_json()
    assert counts["sub_questions_reached_by_the_sources_example"] == 1
    assert counts["questions_with_final_hop_reached"] == 1
    question["functions"] = [source.removesuffix("motto('zq7')")]
    path.write_text(json.dumps([question]))
    assert (await run(path, 5)).to_json()["questions_with_final_hop_reached"] == 0


async def run(path: Path, calls: int) -> Audit:
    with ToolServerProcess(CONFIG) as server:
        client = ToolClient(server.address, CONFIG)
        try:
            return await audit(read_questions(path), client, calls)
        finally:
            await client.close()


async def test_own_tasks_are_called_and_partly_reached() -> None:
    found = await run(OWN_TASKS, 30)
    counts = found.to_json()
    assert (counts["questions"], counts["tools"]) == (12, 36)
    reached = {tool.tool for tool in found.tools if tool.reached}
    # Plain look-ups are found; the register wants "Surname, Given name", which no schema says.
    assert "reverse_digits" in reached
    assert "resident_register" not in reached
    assert all(tool.first_error for tool in found.tools if not tool.answered)


@pytest.mark.real
@pytest.mark.skipif(
    not SAMPLE.is_file(), reason="the ToolHop sample does not lie beside the checkout"
)
async def test_every_tool_of_the_real_sample_answers() -> None:
    found = await run(SAMPLE, 60)
    assert len(found.tools) == 264
    assert all(tool.statuses for tool in found.tools)
    assert sum(tool.answered for tool in found.tools) >= 263  # all 264 at 200 calls each
    ended = {status for tool in found.tools for status in tool.statuses}
    assert ended <= {AnswerStatus.OK, AnswerStatus.TOOL_ERROR, AnswerStatus.TIMEOUT}
    assert sum(tool.reached for tool in found.tools) > 200
