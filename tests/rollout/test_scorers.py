"""Scorers that see what happened: real sandbox, real runner, and policies that try to cheat."""

import json
import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from envs.config import IsolationConfig, PerturbationLevel, ToolServerConfig
from envs.errors import ConfigError, DataFileError
from envs.tools import ToolService
from rollout.chat.template import ChatTemplate
from rollout.episode import Outcome
from rollout.episode_schema import from_batch, to_batch
from tests.rollout.own_world import TRIAL, Row, answer, call, play, real_tools, tasks_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

BANK = '''
class Bank:
    def __init__(self, accounts: dict[str, int] | None = None):
        self._accounts = accounts or {"ada": 100, "bob": 0}
        self._log = []

    def transfer(self, source: str, target: str, amount: int) -> str:
        """Move money."""
        if amount > self._accounts[source]:
            raise ValueError("not enough")
        self._accounts[source] -= amount
        self._accounts[target] += amount
        self._log.append([source, target, amount])
        return "done"

    def balance(self, name: str) -> int:
        """Money of somebody."""
        return self._accounts[name]
'''
REWARD = """
def score(answer, calls, state):
    return {"paid": float(state["Bank"]["_accounts"]["bob"] == 30), "brief": len(calls) < 3}
"""
PAY = call("transfer", source="ada", target="bob", amount=30)
GOLD: Row = {
    "gold": [{"name": "transfer", "arguments": {"source": "ada", "target": "bob", "amount": 30}}]
}
TOOLS: Row = {"python": "bank.py"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bank.py").write_text(BANK)
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools() -> AsyncIterator[ToolService]:
    config = ToolServerConfig(isolation=IsolationConfig(required="seccomp"), call_timeout_s=2)
    async with real_tools(config) as service:
        yield service


async def test_gold_calls_compare_the_states(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    [task] = tasks_in(folder, [{"tools": TOOLS, "scorers": [GOLD]}])
    right = await play(tools, template, task, [PAY, answer("ok")])
    assert (right.outcome, right.reward) == (Outcome.ANSWERED, 1.0)
    assert right.reward_parts["gold"] == right.reward_parts["gold.turns"] == 1.0
    # another way to the same state, but for the log, which counts unless it is ignored
    half = call("transfer", source="ada", target="bob", amount=15)
    wrong = await play(tools, template, task, [half, half, answer("ok")])
    assert (wrong.reward, wrong.outcome) == (0.0, Outcome.ANSWERED)
    assert wrong.score_notes == {"gold": "Bank._log.0.2: found 15, expected 30"}
    [task] = tasks_in(folder, [{"tools": TOOLS, "scorers": [{**GOLD, "ignore": ["Bank._log"]}]}])
    assert (await play(tools, template, task, [half, half, answer("ok")])).reward == 1.0


def an_api(name: str) -> str:
    """Return a document with one collection."""
    note = {"type": "object", "properties": {"text": {"type": "string"}}}

    def said(schema: Row) -> Row:
        return {"200": {"content": {"application/json": {"schema": schema}}}}

    listed = {"operationId": name, "responses": said({"type": "array", "items": note})}
    add = {
        "operationId": f"add_{name}",
        "requestBody": {"content": {"application/json": {"schema": note}}},
        "responses": said(note),
    }
    paths = {f"/{name}": {"get": listed, "post": add}}
    return json.dumps({"openapi": "3.1.0", "paths": paths})


async def test_gold_calls_compare_every_source_of_a_task(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    gold = [{"name": f"add_{name}", "arguments": {"text": "x"}} for name in ("notes", "visits")]
    apis: list[Row] = []
    for name in ("notes", "visits"):
        (folder / f"{name}.json").write_text(an_api(name))
        (folder / f"{name}_fixtures.json").write_text(json.dumps({f"/{name}": []}))
        apis.append({"openapi": f"{name}.json", "fixtures": f"{name}_fixtures.json"})
    (folder / "see.py").write_text("def score(state): return {k: 0 for k in state} | {'score': 1}")
    rows: list[Row] = [
        {"tools": [apis[0], TOOLS, apis[1]], "scorers": [{"gold": gold}]},
        {"tools": [apis[0], TOOLS, apis[1]], "scorers": [{"function": "see.py"}]},
    ]
    task, seen = tasks_in(folder, rows)
    notes, visits = (call(f"add_{name}", text="x") for name in ("notes", "visits"))
    for turns, reward in (
        ([notes, visits, answer("ok")], 1.0),
        ([notes, answer("ok")], 0.0),
        ([visits, answer("ok")], 0.0),
    ):
        episode = await play(tools, template, task, turns)
        assert episode.reward == reward, episode.error
    parts = (await play(tools, template, seen, [answer("ok")])).reward_parts
    names = ("Simulation", "Bank", "Simulation_2")
    assert all(f"function.{name}" in parts for name in names), parts


HIDES = """
class Notes:
    def __init__(self):
        self._texts = []
        self._spoilt = ""

    def write(self, text: str, times: int) -> str:
        \"\"\"Keep a text.\"\"\"
        self._texts += [text * 1000] * times
        return "kept"

    def spoil(self, how: str) -> str:
        \"\"\"Do something to the notes.\"\"\"
        self._spoilt = how
        return "spoilt"

    def _state(self):
        while self._spoilt == "hang":
            pass
        if self._spoilt:
            raise ValueError("no state")
        return self._texts
"""


@pytest.mark.parametrize(
    "made",
    [
        call("write", text="0123456789", times=2000),
        call("spoil", how="hang"),
        call("spoil", how="raise"),
    ],
    ids=["too long", "hangs", "raises"],
)
@pytest.mark.parametrize("kind", ["gold", "function"])
async def test_a_state_that_the_policy_made_unreadable_is_no_second_attempt(
    tools: ToolService, template: ChatTemplate, folder: Path, made: str, kind: str
) -> None:
    """It has the score 0, and is not a failure of the machine, which is run again."""
    (folder / "notes.py").write_text(HIDES)
    (folder / "seen.py").write_text("def score(state): return 1.0")
    scorer: Row = (
        {"gold": [{"name": "write", "arguments": {"text": "a", "times": 1}}]}
        if kind == "gold"
        else {"function": "seen.py"}
    )
    [task] = tasks_in(folder, [{"tools": {"python": "notes.py"}, "scorers": [scorer]}])
    honest = call("write", text="a", times=1)
    right, wrong = [await play(tools, template, task, [one, answer("x")]) for one in (honest, made)]
    assert (right.outcome, right.reward) == (Outcome.ANSWERED, 1.0)
    assert (wrong.outcome, wrong.reward) == (Outcome.ANSWERED, 0.0)
    assert [note.startswith("the state of the tools") for note in wrong.score_notes.values()] == [
        True
    ]


@pytest.mark.parametrize(
    "second",
    [
        {"python": "other.py"},
        {"python": "bank.py", "arguments": {"accounts": {}}, "include": ["balance"]},
    ],
)
async def test_states_that_could_not_be_told_apart_are_refused(folder: Path, second: Row) -> None:
    (folder / "other.py").write_text("class Bank:\n    def close(self): ...\n")
    first = {**TOOLS, "include": ["transfer"]}
    with pytest.raises(DataFileError, match=r"a class 'Bank' that differs.*rename one"):
        tasks_in(folder, [{"tools": [first, second], "answer": "x"}])


async def test_what_was_done_in_trials_counts_for_nothing(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    path: Row = {"path": GOLD["gold"]}
    probe: Row = {"probes": [{"name": "balance", "arguments": {"name": "bob"}, "expect": 30}]}
    rows: list[Row] = [{"tools": TOOLS, "scorers": [s]} for s in (GOLD, path, probe)]
    rows.append({"tools": TOOLS, "scorers": [{"function": "reward.py"}]})
    experience = "<experience>it pays</experience>"
    for task in tasks_in(folder, rows):
        cheat = await play(tools, template, task, [PAY, experience, answer("paid")], TRIAL)
        assert cheat.outcome is Outcome.ANSWERED
        assert cheat.reward == (0.0 if task.id != "file-3" else 1.0), task.id
        assert cheat.reward_parts.get("function.paid", 0.0) == 0.0
        honest = await play(tools, template, task, [PAY, experience, PAY, answer("paid")], TRIAL)
        assert honest.reward == (1.0 if task.id != "file-3" else 2.0), task.id


async def test_several_scorers_are_parts_by_weight(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    scorers: list[Row] = [
        {**GOLD, "weight": 3},
        {"path": [{"name": "balance"}], "order": "set", "name": "looked"},
        {"probes": [{"name": "balance", "arguments": {"name": "ada"}, "expect": 1}], "weight": 0},
    ]
    row: Row = {"tools": TOOLS, "answer": "yes", "scorers": [scorers[0], scorers[1]]}
    [task, _] = tasks_in(folder, [row, row], scorers=[scorers[2]])
    task = pickle.loads(pickle.dumps(task))  # as on its way to a worker
    episode = await play(tools, template, task, [PAY, answer("Yes.")])
    assert episode.reward == pytest.approx((1 + 3 * 1 + 1 * 0) / 5)
    assert {name: episode.reward_parts[name] for name in ("match", "gold", "looked", "probes")} == {
        "match": 1.0,
        "gold": 1.0,
        "looked": 0.0,
        "probes": 0.0,
    }
    assert "balance: found '70', expected 1" in episode.score_notes["probes"]
    assert from_batch(to_batch([episode]))[0].score_notes == episode.score_notes


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def score(answer): raise ValueError('no')", "ValueError: no"),
        ("def score(answer): return float('nan')", "finite number"),
        ("def score(answer): return {'a': float('inf')}", "finite number"),
        ("def score(answer): return 'good'", "expected a finite number"),
        ("def score(answer): return None", "expected a finite number"),
        ("def score(answer):\n    while True: pass", "no answer within 2 s"),
        ("import sys\ndef score(answer): sys.exit(3)", "SystemExit"),
        ("import os\ndef score(answer): os._exit(0)", "ended its own process"),
        ("import nothing_like_this\ndef score(answer): return 1", "ModuleNotFoundError"),
    ],
)
async def test_a_scorer_that_fails_gives_no_reward(
    tools: ToolService, template: ChatTemplate, folder: Path, source: str, why: str
) -> None:
    (folder / "reward.py").write_text(source)
    [task] = tasks_in(folder, [{"tools": TOOLS, "scorers": [{"function": "reward.py"}]}])
    episode = await play(tools, template, task, [answer("x")])
    assert (episode.outcome, episode.reward) == (Outcome.INFRA_FAILED, None)
    assert "scorer function: " in episode.error
    assert why in episode.error


async def test_tools_cannot_read_what_a_scorer_expects(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    (folder / "reward.py").write_text(
        "EXPECTED = 'swordfish'\ndef score(answer): return answer == EXPECTED"
    )
    (folder / "spy.py").write_text(
        "import sys\n"
        "def look() -> str:\n"
        "    files = []\n"
        "    for name in ('re' + 'ward.py', '../re' + 'ward.py', 'tasks' + '.jsonl'):\n"
        "        try: files.append(open(name).read())\n"
        "        except OSError: pass\n"
        "    return str((len(files), sorted(m for m in sys.modules if 'reward' in m)))\n"
    )
    scorers: list[Row] = [
        {"function": "reward.py", "arguments": {}},
        {"path": [{"name": "look"}], "weight": 0},
    ]
    row: Row = {"tools": {"functions": "spy.py"}, "scorers": scorers}
    [task] = tasks_in(folder, [row])
    assert "swordfish" not in task.tool_set.model_dump_json()
    episode = await play(tools, template, task, [call("look"), answer("swordfish")])
    assert episode.calls[0].result == "(0, [])"
    assert episode.reward == 1.0
    assert not any("swordfish" in m.content for m in episode.messages if m.role != "assistant")
    # and the name by which the state is read is no tool that a policy could call
    asked = await play(tools, template, task, [call("trialrun:state"), answer("x")])
    assert asked.turns[0].policy_error == "unknown_tool"
    for source in ("from reward import EXPECTED", "EXPECTED = open('reward.py')"):
        (folder / "spy.py").write_text(f"{source}\ndef look() -> str: return EXPECTED")
        with pytest.raises(DataFileError, match="do not read reward\\.py"):
            tasks_in(folder, [row])
    (folder / "spy.py").write_text("def look() -> str: return open('tasks.jsonl').read()")
    with pytest.raises(DataFileError, match="do not read tasks\\.jsonl"):
        tasks_in(folder, [row])


async def test_a_trusted_scorer_runs_here_and_has_a_limit(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    (folder / "reward.py").write_text(
        "import os, time\n"
        "def score(answer, question, hang=False):\n"
        "    if hang: time.sleep(2)\n"
        "    return float(int(answer) == os.getpid())\n"
    )
    row: Row = {"tools": TOOLS, "scorers": [{"function": "reward.py", "trusted": True}]}
    with pytest.raises(DataFileError, match=r"env\.trusted_scorers = true"):
        tasks_in(folder, [row])
    hang = json.loads(json.dumps(row))
    hang["scorers"][0]["arguments"] = {"hang": True}
    task, hanging = tasks_in(folder, [row, hang], trusted_scorers=True, scorer_timeout_s=0.3)
    assert (await play(tools, template, task, [answer(os.getpid())])).reward == 1.0
    lost = await play(tools, template, hanging, [answer(1)])
    assert (lost.outcome, lost.reward) == (Outcome.INFRA_FAILED, None)
    assert "nothing within 0.3 s" in lost.error


@pytest.mark.parametrize("level", ["medium", "union"])
async def test_scorers_look_through_a_perturbation(
    tools: ToolService, template: ChatTemplate, folder: Path, level: PerturbationLevel
) -> None:
    path: Row = {"path": GOLD["gold"]}
    probe: Row = {"probes": [{"name": "balance", "arguments": {"name": "bob"}, "expect": 30}]}
    row: Row = {"tools": TOOLS, "scorers": [GOLD, path, probe]}
    [task] = tasks_in(folder, [row], level=level)
    adaptation = task.tool_set.adaptation
    assert adaptation is not None
    at = [rule.target for rule in adaptation.rules].index("transfer")
    spec, rule = task.tool_set.tools[at], adaptation.rules[at]
    wanted = {"source": "ada", "target": "bob", "amount": 30}
    known = spec.parameters["properties"]
    assert isinstance(known, dict)
    given = {}
    for name in known:
        value = wanted.get(rule.parameters.get(name, name), "x")
        kind = known[name].get("type")  # type: ignore[union-attr]
        given[name] = str(value) if kind == "string" else value
    turn = call(spec.name, **given)
    # an injected fault may take some calls: a policy tries again
    episode = await play(tools, template, task, [turn, answer("x")])
    tries = 1
    while episode.calls[0].status.value != "ok" and tries < 8:
        episode = await play(tools, template, task, [turn, answer("x")], seed=tries)
        tries += 1
    assert episode.calls[0].name == spec.name
    assert episode.reward == 1.0, episode.score_notes


async def test_a_wrong_scorer_is_refused_by_name(folder: Path) -> None:
    def refused(scorer: Row, message: str, **row: object) -> None:
        with pytest.raises((DataFileError, ConfigError), match=message):
            tasks_in(folder, [{"tools": TOOLS, "scorers": [scorer], **row}])

    refused({"gold": [{"name": "pay"}]}, "expected a call of one of transfer, balance, found pay")
    refused({"gold": [{"name": "balance"}]}, "missing required argument 'name'")
    refused({"path": []}, "field `scorers.0.path`")
    refused({"function": "reward.py:other"}, "expected a function `other`")
    refused({"judge": "kind"}, r"judge\.model")
    refused({"kind": "gold"}, "one of the keys environment, answer, function, gold")
    refused({**GOLD, "weight": 0}, "a `weight` above 0")
    refused({"answer": "exact"}, "expected `answer`")
    gold = {"gold": [[], []], "name": "g"}
    refused(gold, "one for each of 1 messages")
    with pytest.raises(DataFileError, match="give each a `name`"):
        tasks_in(folder, [{"tools": TOOLS, "scorers": [GOLD, GOLD]}])
    with pytest.raises(DataFileError, match="expected an `answer`, or `scorers`"):
        tasks_in(folder, [{"tools": TOOLS}])
    (folder / "reward.py").write_text("def score(answer, budget): ...")
    refused({"function": "reward.py"}, "found budget")


async def test_an_answer_that_is_nested_deep_is_only_a_wrong_one(
    tools: ToolService, template: ChatTemplate, folder: Path
) -> None:
    """Whoever reads it as JSON runs out of stack."""
    source = "class Lists:\n    def nest(self, depth: int) -> str:\n        'Nest.'\n"
    (folder / "nest.py").write_text(source + "        return '[' * depth\n")
    made = {"name": "nest", "arguments": {"depth": 90_000}}
    probes = [{**made, "expect": "[[["}]
    gold = {"gold": [made], "probes": [made]}
    [task] = tasks_in(
        folder, [{"tools": {"python": "nest.py"}, "scorers": [{"probes": probes}, gold]}]
    )
    found = await play(tools, template, task, [answer("x")])
    assert (found.outcome, found.reward_parts["probes"]) == (Outcome.ANSWERED, 0.0)
    assert found.reward_parts["gold"] == 1.0
