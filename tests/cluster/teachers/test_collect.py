"""Collecting examples: killed and resumed, filtered, mixed, and without a secret on the disk."""

import json
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.cli.main import main
from cluster.config.run_config import RolloutsSection, RunConfig, load_config, to_toml
from cluster.progress import Progress
from cluster.scheduling.collection import Collection, CollectionSize
from cluster.scheduling.dispatcher import Dispatcher, EpisodeWorkers
from cluster.scheduling.task_stream import TaskStream
from cluster.teachers.collect import endpoint_key, retry_section, run_collect
from cluster.teachers.selection_file import read_selection, select_episodes
from cluster.teachers.teacher import EndpointTeacher, TeacherHost
from cluster.training.sft_data import Source, correct_of, parse_source, selected_of, sft_table
from envs.errors import ConfigError, EngineError, InfraError, StoreError
from envs.services.scripted import ScriptedTools
from envs.tasks import Task
from envs.tools import AnswerStatus, ToolAnswer
from rollout.chat.template import ChatTemplate
from rollout.config import EpisodeConfig
from rollout.engines.openai_config import EndpointConfig
from rollout.episode import Episode, Lease, Outcome, Phase, RolloutKind, Turn
from rollout.episode_schema import from_batch, to_batch
from rollout.evaluation.teacher_filter import FilterConfig, FilterContext
from rollout.store.ledger_state import DropReason, State
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo
from rollout.store.run_reader import RunReader
from tests.cluster.conftest import Numbered, canned
from tests.rollout.conftest import make_tokenizer
from tests.rollout.engines.fake_endpoint import KEY, PROMPT, FakeEndpoint, call, fails, says

RULES = FilterConfig(min_trials=0, leakage=False, produced=False)
SIZE = CollectionSize(tasks=4, samples=2, seed=5, concurrency=3)
QUIET = Progress(quiet=True)


@dataclass
class Teacher:
    """Plays canned episodes: odd samples are right; `before` may play another, or fail, instead."""

    before: Callable[[Lease], Episode | None] = lambda lease: None
    played: list[str] = field(default_factory=list)

    async def run_episode(
        self, lease: Lease, task: Task, config: EpisodeConfig, prefer: str = ""
    ) -> tuple[pa.RecordBatch, str]:
        episode = self.before(lease) or canned(lease, task, 0, "")
        self.played.append(lease.episode)
        return to_batch([episode]), prefer


def new_run(path: Path) -> RunDirectory:
    info = RunInfo(run="unit", seed=5, created_at=0.0)
    return RunDirectory.create(path, to_toml(RunConfig()), info)


async def play(
    run: RunDirectory, workers: EpisodeWorkers, affordable: Callable[[], bool] = lambda: True
) -> None:
    dispatcher = Dispatcher(workers, run, RolloutsSection(), EpisodeConfig())
    stream = TaskStream(Numbered(), "train", 5)
    await Collection(run, stream, dispatcher, SIZE, affordable).run_all(QUIET)


def stored(path: Path) -> Counter[str]:
    return Counter(row.episode for row in RunReader(path).episodes())


EVERY = {f"t{task:06d}-{sample:02d}": 1 for task in range(4) for sample in range(2)}


async def test_every_sample_of_every_task_is_stored_and_ends_as_collected(tmp_path: Path) -> None:
    with new_run(tmp_path / "run") as run:
        await play(run, Teacher())
        entries = run.ledger.entries.values()
        assert {entry.reason for entry in entries} == {DropReason.COLLECTED}
        assert len({entry.lease.seed for entry in entries}) == len(EVERY)
        assert run.ledger.audit().violations == ()
    assert stored(tmp_path / "run") == EVERY


async def test_a_killed_collection_plays_only_what_is_missing(tmp_path: Path) -> None:
    def dies(lease: Lease) -> None:
        if lease.group == "t000002":
            raise EngineError("gone")

    path, first, second = tmp_path / "run", Teacher(dies), Teacher()
    with new_run(path) as run:
        with pytest.raises(EngineError, match="gone"):
            await play(run, first)
        assert run.ledger.open_leases()
    with RunDirectory.open(path) as run:
        run.recover(-1)
        await play(run, second)
        assert run.ledger.audit().states[State.DROPPED] == len(EVERY)
    assert stored(path) == EVERY
    assert first.played and not set(first.played) & set(second.played)


async def test_what_a_kill_left_finished_is_not_played_again(tmp_path: Path) -> None:
    path, teacher = tmp_path / "run", Teacher()
    with new_run(path) as run:
        lease = Lease(
            run="unit",
            episode="t000000-00",
            kind=RolloutKind.COLLECT,
            group="t000000",
            group_number=0,
            task="train-0",
            sample_index=0,
            attempt=0,
            seed=1,
        )
        other = replace(lease, episode="t000000-01", sample_index=1)
        run.ledger.lease([lease, other])
        task = Numbered().tasks("train", 5, 1)[0]
        run.append(to_batch([canned(lease, task, 0, "")]))
    with RunDirectory.open(path) as run:
        run.recover(-1)
        await play(run, teacher)
        assert run.ledger.entries["t000000-00"].reason is DropReason.COLLECTED
    assert sorted(teacher.played) == sorted(set(EVERY) - {"t000000-00"})


async def test_a_spent_budget_leaves_the_rest_for_later(tmp_path: Path) -> None:
    path, teacher = tmp_path / "run", Teacher()
    with new_run(path) as run:
        await play(run, teacher, lambda: len(teacher.played) < 3)
    played = len(stored(path))
    assert 3 <= played < len(EVERY)
    with RunDirectory.open(path) as run:
        run.recover(-1)
        await play(run, teacher)
    assert stored(path) == EVERY


def infra(lease: Lease) -> Episode:
    episode = canned(lease, Numbered().tasks("train", 5, 1)[0], 0, "")
    return replace(
        episode, outcome=Outcome.INFRA_FAILED, reward=None, reward_parts={}, error="overloaded"
    )


async def test_one_failure_of_the_world_is_tried_again(tmp_path: Path) -> None:
    teacher = Teacher(lambda lease: None if lease.attempt else infra(lease))
    with new_run(tmp_path / "run") as run:
        await play(run, teacher)
        assert run.ledger.audit().reasons == {DropReason.COLLECTED: len(EVERY)}
    assert select_episodes(tmp_path / "run", RULES, FilterContext()).report["episodes"] == len(
        EVERY
    )


@pytest.mark.parametrize(
    ("source", "tries"), [("scripted", 7), ("policy", 7), ("endpoint", 2), ("turns", 2)]
)
def test_at_an_endpoint_tries_are_paid_for_and_fewer(source: str, tries: int) -> None:
    turns = ["collect.turns=turns.json"] if source == "turns" else []
    limits = ["rollouts.max_attempts=7", "collect.endpoint.episode_attempts=2"]
    config = load_config("catalog", [f"collect.source={source}", *turns, *limits])
    assert retry_section(config).max_attempts == tries


async def test_a_world_that_fails_every_episode_ends_it_with_the_last_error(
    tmp_path: Path,
) -> None:
    message = "8 episodes in a row failed, the last: overloaded"
    with new_run(tmp_path / "run") as run, pytest.raises(InfraError, match=message):
        await play(run, Teacher(infra))


async def test_the_policys_pool_plays_too(tmp_path: Path, fleet: Any) -> None:
    with new_run(tmp_path / "run") as run:
        pool = fleet.pool()
        pool.resize(1)
        await play(run, pool)
        await pool.close()
    assert stored(tmp_path / "run") == EVERY
    assert read_selection(tmp_path / "run") is None
    selection = select_episodes(tmp_path / "run", RULES, FilterContext())
    assert selection.selected == tuple(f"t{task:06d}-01" for task in range(4)), "right ones only"


# What is kept, and what SFT reads


async def collected(path: Path) -> Path:
    with new_run(path) as run:
        await play(run, Teacher())
    return path


async def test_the_selection_says_why_and_can_be_made_again(tmp_path: Path) -> None:
    run = await collected(tmp_path / "run")
    report = select_episodes(run, RULES, FilterContext()).report
    assert (report["episodes"], report["selected"], report["dropped"]) == (8, 4, {"wrong": 4})
    assert report["by_source"] == {"policy": {"episodes": 8, "selected": 4}}
    assert selected_of(run)["episode"].to_pylist() == [f"t{task:06d}-01" for task in range(4)]
    again = select_episodes(run, RULES.model_copy(update={"min_answer": 0.0}), FilterContext())
    assert again.report["dropped"] == {"duplicate": 4}, "wrong ones rank behind right ones"
    select_episodes(run, FilterConfig(), FilterContext())
    with pytest.raises(ConfigError, match="none of the 8 episodes"):
        selected_of(run)


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(make_tokenizer())


async def test_weights_say_how_often_an_episode_is_seen(
    tmp_path: Path, template: ChatTemplate
) -> None:
    one, two = await collected(tmp_path / "one"), await collected(tmp_path / "two")
    mixed = sft_table([Source(one, 2.5), Source(two, 0.25)], template, 1)
    counts = Counter(mixed["episode"].to_pylist()[: 4 * 2 + 2])
    assert sorted(counts.values()) == [2, 2, 3, 3]
    assert mixed.num_rows == 10 + 1
    drawn = [sft_table([Source(one, 0.5)], template, 1)["episode"].to_pylist() for _ in range(2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(ConfigError, match="leave no episode"):
        sft_table([Source(one, 0.01)], template, 1)
    with pytest.raises(ConfigError, match=r"in the format 'hermes'.*'glm'.*collect again"):
        sft_table([Source(one)], template, 1, "glm")


def test_a_source_is_a_folder_and_perhaps_a_weight(tmp_path: Path) -> None:
    odd = tmp_path / "a=2"
    assert parse_source(f"{odd}=0.5") == Source(odd, 0.5)
    odd.mkdir()
    assert parse_source(str(odd)) == Source(odd, 1.0)
    for wrong in ("a=b", "a=0", "a=-1", "a=nan", "a=inf"):
        with pytest.raises(ConfigError, match="expected DIR or DIR=WEIGHT"):
            parse_source(wrong)


async def test_episodes_of_another_tokenizer_are_refused(
    tmp_path: Path, template: ChatTemplate
) -> None:
    def spoken(lease: Lease) -> Episode:
        turn = Turn(
            phase=Phase.EXECUTION,
            start=1,
            end=3,
            text="not what these tokens say",
            finish_reason="stop",
            policy_error="",
        )
        return replace(canned(lease, Numbered().tasks("train", 5, 1)[0], 0, ""), turns=(turn,))

    with new_run(tmp_path / "run") as run:
        await play(run, Teacher(spoken))
    with pytest.raises(ConfigError, match="collected for another tokenizer"):
        sft_table([Source(tmp_path / "run")], template, 0)


# Endpoints


async def test_an_endpoints_key_is_nowhere_in_the_run_directory(
    tmp_path: Path, template: ChatTemplate
) -> None:
    good = [
        says(call("double", 3)),
        says("<experience>it doubles</experience>"),
        says(call("double", 21)),
        says("<answer>42</answer>"),
    ]
    endpoint = FakeEndpoint([fails(500, KEY), *good, fails(400, f"bad {KEY}")])
    tools = ScriptedTools(
        lambda made, before: ToolAnswer(
            status=AnswerStatus.OK, text=str(2 * int(str(made.arguments["x"]))), seconds=0.0
        )
    )
    host = TeacherHost(tools, template, 16_000)
    teacher = EndpointTeacher(host, endpoint.client(PROMPT), PROMPT)
    path = tmp_path / "run"
    with new_run(path) as run:
        dispatcher = Dispatcher(teacher, run, RolloutsSection(max_attempts=3), EpisodeConfig())
        size = CollectionSize(tasks=2, samples=1, seed=5, concurrency=1)
        tasks = TaskStream(Numbers(), "train", 5)
        await Collection(run, tasks, dispatcher, size).run_all(QUIET)
    reader = RunReader(path)
    played = from_batch(reader.batch(reader.episodes()))
    assert played[0].source == "m"
    requests = [episode.extra["teacher_requests"] for episode in played]
    assert (played[0].outcome, requests) == (Outcome.ANSWERED, [5.0, *[1.0] * 3])
    failures = select_episodes(path, RULES, FilterContext()).report["failures"]
    assert isinstance(failures, dict) and [*failures.values()] == [1]
    assert played[1].error.endswith("bad ***")
    assert endpoint.keys[0].endswith(KEY)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert files and not [file for file in files if KEY.encode() in file.read_bytes()]


class Numbers(Numbered):
    """Tasks with a tool that doubles."""

    def tasks(self, split: Any, seed: int, count: int | None) -> list[Task]:
        tool = {
            "name": "double",
            "description": "",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        }
        empty = super().tasks(split, seed, count)
        tools = empty[0].tool_set.model_validate(
            {"tools": [tool], "sources": ["def double(x): return 2 * x"], "functions": ["double"]}
        )
        return [replace(task, tool_set=tools) for task in empty]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "needs collect.endpoint.model"),
        ({"base_url": "ftp://x"}, "expected http://HOST"),
        ({"base_url": f"https://me:{KEY}@x/v1"}, "with credentials or a query"),
        ({"base_url": f"https://x/v1?key={KEY}"}, "with credentials or a query"),
        ({"key_variable": KEY}, "the key itself does not belong there"),
        ({"key_variable": "UNSET"}, "the environment variable UNSET holds no key"),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_without_telling_secrets(
    changes: dict[str, str], message: str
) -> None:
    endpoint = EndpointConfig(model="m").model_copy(update=changes)
    with pytest.raises(ConfigError, match=message) as error:
        endpoint_key(endpoint, {"OTHER": KEY})
    assert KEY not in str(error.value)


def test_the_key_comes_from_the_variable_that_is_named() -> None:
    endpoint = EndpointConfig(model="m", key_variable="TEACHER_KEY")
    assert endpoint_key(endpoint, {"TEACHER_KEY": f" {KEY}\n"}) == KEY
    assert endpoint_key(endpoint.model_copy(update={"key_variable": ""}), {"A": KEY}) == ""


# The command


def test_options_become_settings_and_a_dry_run_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--source endpoint --base-url http://x/v1 --model 7 --key-variable K --dry-run"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["trialrun", "collect", "catalog", *options.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0)
    section = tomllib.loads(capsys.readouterr().out)["collect"]
    assert section["source"] == "endpoint"
    endpoint = section["endpoint"]
    found = [endpoint[name] for name in ("base_url", "model", "key_variable", "tool_format")]
    assert found == ["http://x/v1", "7", "K", "prompt"]
    assert not list(tmp_path.iterdir())


async def test_an_existing_collection_needs_resume(tmp_path: Path) -> None:
    with new_run(tmp_path / "run") as run:
        await play(run, Teacher())
    with pytest.raises(StoreError, match=r"there is a collection .* --resume, or choose another"):
        run_collect(load_config("catalog"), tmp_path / "run", resume=False)


async def test_an_older_selection_is_read(tmp_path: Path) -> None:
    run = await collected(tmp_path / "run")
    selection = select_episodes(run, RULES, FilterContext())
    new = run / "selection.json"
    content = json.loads(new.read_text())
    content["kept"] = content.pop("selected")
    older = json.dumps(content)
    new.unlink()
    assert read_selection(run) is None
    (run / "kept.json").write_text(older)
    assert read_selection(run) == selection


async def test_a_penalty_does_not_make_an_answer_wrong(tmp_path: Path) -> None:
    """Only the `answer` part of the reward decides what SFT trains on."""

    def penalised(lease: Lease) -> Episode:
        episode = canned(lease, Numbered().tasks("train", 5, 1)[0], 0, "")
        assert episode.reward is not None
        return replace(episode, reward=episode.reward - 0.75)

    with new_run(tmp_path / "run") as run:
        await play(run, Teacher(penalised))
    names = correct_of(tmp_path / "run")["episode"].to_pylist()
    assert sorted(names) == [f"t{task:06d}-01" for task in range(4)]
