"""Each of the dozen tasks that ship with the project is solvable, by its teacher's calls."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from envs.argument_check import check_arguments
from envs.config import IsolationConfig, ToolServerConfig
from envs.server.client import ToolClient
from envs.server.process import ToolServerProcess
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import OWN_TASKS, ToolHopEnvironment
from envs.tasksets.toolhop.teacher import OWN_CALLS
from envs.tools import AnswerStatus, JsonObject, ToolCall, ToolSet
from tests.envs.tasksets.answers_of import score_of

CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))


@dataclass(frozen=True, slots=True)
class Hop:
    """A call that misleads a newcomer, then the call that works, and its value."""

    tool: str
    naive: JsonObject | None
    works: JsonObject
    value: str


CHAINS: dict[int, list[Hop]] = {
    int(identity): [Hop(**hop) for hop in chain]
    for identity, chain in json.loads(OWN_CALLS.read_text(encoding="utf-8")).items()
}
ENTRIES = {entry["id"]: entry for entry in json.loads(OWN_TASKS.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ToolServerProcess(CONFIG) as server:
        yield server.address


async def run_calls(
    address: str, tool_set: ToolSet, calls: list[tuple[str, JsonObject]]
) -> list[str]:
    """Run the calls in one sandboxed session; their texts."""
    for name, arguments in calls:
        spec = tool_set.find(name)
        assert spec is not None
        assert check_arguments(spec, arguments) is None
    client = ToolClient(address, CONFIG)
    session = await client.open_session(tool_set, 1, "execution")
    answers = await session.call([ToolCall(name=name, arguments=args) for name, args in calls])
    await session.close()
    await client.close()
    assert {answer.status for answer in answers} <= {AnswerStatus.OK, AnswerStatus.TOOL_ERROR}
    return [answer.text for answer in answers]


def test_every_task_has_a_chain() -> None:
    assert CHAINS.keys() == ENTRIES.keys()
    assert all(hop.naive for hop in (chain[0] for chain in CHAINS.values()))


@pytest.mark.parametrize("identity", sorted(CHAINS))
async def test_task_is_solvable_and_needs_its_quirks_learnt(address: str, identity: int) -> None:
    environment = ToolHopEnvironment(ToolHopEnvConfig())
    task = next(t for t in environment.all_tasks() if t.id == f"toolhop-{identity}")
    chain, entry = CHAINS[identity], ENTRIES[identity]
    calls = [(hop.tool, hop.works) for hop in chain]
    naive = [(hop.tool, hop.naive) for hop in chain if hop.naive is not None]

    answers = await run_calls(address, task.tool_set, calls + naive)

    for hop, answer in zip(chain, answers, strict=False):
        assert hop.value in answer
    misled = [hop for hop in chain if hop.naive is not None]
    for hop, answer in zip(misled, answers[len(chain) :], strict=True):
        assert hop.value not in answer
    assert set(entry["sub_task"].values()) <= {hop.value for hop in chain}
    assert score_of(task, answers[len(chain) - 1]) == 1.0
    assert chain[-1].value == entry["answer"]
