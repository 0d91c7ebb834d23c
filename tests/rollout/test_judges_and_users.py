"""Models as judges and as users, through the real runner and over real HTTP."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, JudgeConfig, SimulatedUserConfig, ToolServerConfig
from envs.errors import ConfigError
from envs.gateway.gateway_host import InProcessTools
from envs.scoring.judge import read_verdict
from envs.server.replay_host import ReplayHost
from envs.services.replayed import ReplayedTools
from envs.tools import ToolService
from rollout.chat.template import ChatTemplate
from rollout.episode import Outcome
from rollout.episode_difference import first_difference
from tests.rollout.chat_server import chat_server
from tests.rollout.own_world import TOOLS, TRIAL, Row, answer, call, play, real_tools, tasks_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHOP = '''
class Shop:
    def __init__(self, orders: dict[str, str]):
        self.orders = orders
    def cancel(self, order: str) -> str:
        """Cancel an order."""
        self.orders[order] = "cancelled"
        return self.orders[order]
    def status(self, order: str) -> str:
        """State of an order."""
        return self.orders[order]
'''
START: Row = {"orders": {"A": "paid", "B": "paid"}}
SOURCE: Row = {"python": "shop.py", "class": "Shop", "arguments": START}


def verdict(kind: str, reason: str = "so") -> str:
    return f'First I think.\n{{"reason": "{reason}", "verdict": "{kind}"}}'


def judge(url: str, **keys: Any) -> JudgeConfig:
    return JudgeConfig(base_url=url, model="j", timeout_s=5, **keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools() -> AsyncIterator[ToolService]:
    async with real_tools(TOOLS, {"JUDGE_KEY": "sk-secret"}) as service:
        yield service


async def test_a_judge_decides_and_says_why(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    row: Row = {
        "question": "Cancel A.",
        "tools": SOURCE,
        "scorers": [{"judge": "Order A was cancelled."}],
    }
    said = [verdict("pass", "A is cancelled"), "no verdict here", verdict("FAIL"), verdict("pass")]
    with chat_server(lambda body, number: said[number - 1]) as server:
        config = judge(server.base_url, times=3, key_variable="JUDGE_KEY")
        [task] = tasks_in(folder, [row], judge=config)
        turns = [call("cancel", order="A"), answer("Done, {criteria} {state}")]
        episode = await play(tools, template, task, turns)
    assert episode.reward == episode.reward_parts["judge"] == 1.0
    assert episode.reward_parts["judge.share"] == pytest.approx(2 / 3)
    assert episode.score_notes["judge"] == "pass: A is cancelled\nfail: so\npass: so"
    prompt = server.requests[0]["messages"][0]["content"]
    assert "Order A was cancelled." in prompt
    assert '"name": "cancel"' in prompt
    assert "Done, {criteria} {state}" in prompt, "what the policy writes is no hole of ours"
    assert len({request["seed"] for request in server.requests}) == len(server.requests)
    assert set(server.keys) == {"Bearer sk-secret"}
    text = "".join(message.content for message in episode.messages)
    assert "was cancelled." not in text
    assert "A is cancelled" not in text


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((503,), "no reply after 2 attempts"),
        ((400,), "HTTP 400"),
        (("I cannot say.",), "expected a verdict"),
        ((verdict("pass"), verdict("fail")), "without a majority"),
    ],
)
async def test_no_verdict_is_no_reward(
    tools: ToolService, template: ChatTemplate, folder: Path, said: tuple[str | int, ...], why: str
) -> None:
    row: Row = {"tools": SOURCE, "scorers": [{"judge": "?"}]}
    with chat_server(lambda body, number: said[(number - 1) % len(said)]) as server:
        config = judge(server.base_url, times=2, tie="retry", attempts=2)
        [task] = tasks_in(folder, [row], judge=config)
        episode = await play(tools, template, task, [answer("x")])
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_FAILED, None)
    assert why in episode.error


@pytest.mark.parametrize(("tie", "reward"), [("fail", 0.0), ("pass", 1.0)])
async def test_a_tie_has_a_rule(
    tools: ToolService, template: ChatTemplate, folder: Path, tie: str, reward: float
) -> None:
    said = (verdict("pass"), verdict("fail"))
    with chat_server(lambda body, number: said[number % 2]) as server:
        row: Row = {"tools": SOURCE, "scorers": [{"judge": "?"}]}
        [task] = tasks_in(folder, [row], judge=judge(server.base_url, times=2, tie=tie))
        assert (await play(tools, template, task, [answer("x")])).reward == reward


async def test_a_verdict_is_the_last_one_outside_of_a_thought() -> None:
    assert read_verdict(verdict("pass", 'a \\"b\\"')) == (True, 'a "b"')
    assert read_verdict('<think>{"verdict": "pass"}</think> no') is None
    assert read_verdict(f"{verdict('pass')}\nOn reflection:\n{verdict('fail')}") == (False, "so")
    assert read_verdict('```json\n{"verdict":"pass"}\n```') == (True, "")


async def test_a_user_goes_on_with_messages_of_a_list(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    gold = [[{"name": "cancel", "arguments": {"order": order}}] for order in "AB"]
    row: Row = {
        "question": "Cancel A.",
        "tools": SOURCE,
        "user": {"says": ["Now B as well."]},
        "scorers": [{"gold": gold}, {"function": "reward.py", "weight": 0}],
    }
    (folder / "reward.py").write_text(
        "def score(answers, calls): return len(answers) * 10 + sum(c['user_turn'] for c in calls)"
    )
    [task] = tasks_in(folder, [row])
    cancel_a, cancel_b = (call("cancel", order=order) for order in "AB")
    turns = ["<experience>.</experience>", cancel_a, answer("A"), cancel_b, answer("B")]
    right = await play(tools, template, task, turns, TRIAL)
    assert (right.outcome, right.reward, right.answer) == (Outcome.ANSWERED, 1.0, "B")
    assert right.reward_parts["function"] == 21.0
    assert [m.content for m in right.messages if m.role == "user"][-1] == "Now B as well."
    assert right.extra["user_messages"] == 1
    # both at once leads to the same end, but not to the state after the first message
    early = await play(tools, template, task, [cancel_a, cancel_b, answer("A"), answer("B")])
    assert (early.reward, early.reward_parts["gold.turns"]) == (0.0, 0.5)


async def test_a_simulated_user_and_a_replay_of_its_episode(
    template: ChatTemplate, folder: Path, tmp_path: Path
) -> None:
    row: Row = {
        "question": "I want to cancel something.",
        "tools": SOURCE,
        "user": {"simulated": {"instructions": "SECRET: cancel order B.", "messages": 3}},
        "scorers": [
            {"gold": [{"name": "cancel", "arguments": {"order": "B"}}]},
            {"judge": "kind"},
        ],
    }

    def reply(body: dict[str, Any], number: int) -> str:
        if body["model"] == "j":
            return verdict("pass")
        return ["It is order B.", "Thanks! ###STOP###"][
            sum(m["role"] == "assistant" for m in body["messages"]) - 1
        ]

    config = ToolServerConfig(
        isolation=IsolationConfig(required="seccomp"),
        record=True,
        record_dir=str(tmp_path / "record"),
    )
    turns = [answer("Which order?"), call("cancel", order="B"), answer("Cancelled.")]
    with chat_server(reply) as server:
        user = SimulatedUserConfig(base_url=server.base_url, model="u")
        [task] = tasks_in(folder, [row], judge=judge(server.base_url), user=user)
        async with real_tools(config) as tools:
            episode = await play(tools, template, task, turns)
    assert (episode.outcome, episode.reward, episode.error) == (Outcome.ANSWERED, 1.0, "")
    asked = server.requests[1]["messages"]
    assert [m["role"] for m in asked] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert [m["content"] for m in asked[2:]] == [
        "I want to cancel something.",
        "Which order?",
        "It is order B.",
        "Cancelled.",
    ]
    assert "SECRET" in asked[0]["content"]
    assert not any("SECRET" in m.content for m in episode.messages)
    # the endpoint is gone: all that it said, and all states, come from the record
    host = ReplayHost(tmp_path / "record")
    await host.start()
    again = await play(ReplayedTools(InProcessTools(host)), template, task, turns)
    await host.stop()
    assert first_difference(episode, again) is None, again.error
    # an endpoint as teacher is not asked again either, so what it used is not compared
    taught = replace(episode, extra={**episode.extra, "teacher_requests": 2.0})
    assert first_difference(taught, again) is None
    other = replace(episode, extra={**episode.extra, "user_messages": 2.0})
    assert first_difference(other, again) is not None


async def test_a_user_that_fails_is_no_fault_of_the_policy(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    row: Row = {
        "tools": SOURCE,
        "answer": "x",
        "user": {"simulated": {"instructions": "?"}},
    }
    with chat_server(lambda body, number: 401) as server:
        user = SimulatedUserConfig(base_url=server.base_url, model="u")
        [task] = tasks_in(folder, [row], user=user)
        episode = await play(tools, template, task, [answer("x")])
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_FAILED, None)
    assert "HTTP 401" in episode.error
    with pytest.raises(ConfigError, match=r"simulated_user\.model"):
        tasks_in(folder, [row])
