"""Episodes that were recorded are played again, on a real replay server, and compared."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.config.run_config import RunConfig
from cluster.lifecycle.inputs import resolve_inputs
from cluster.lifecycle.opening import new_run
from cluster.replay.replay_episodes import replay_run, sessions_of
from cluster.teachers.teacher import run_teacher
from envs.config import IsolationConfig, ToolServerConfig
from envs.server.traffic import TrafficReader, TrafficRecorder
from envs.server.traffic_file import SUFFIX
from envs.server.wire import OpenItem
from envs.tasksets.catalog.config import CatalogEnvConfig
from envs.tools import ToolSet
from learner.pretrained.tiny_model import build_tiny_model
from rollout.config import EpisodeConfig, ModelConfig
from rollout.episode import CallRecord, Episode, Outcome
from rollout.episode_difference import first_difference
from rollout.episode_schema import from_batch, to_batch
from rollout.phase_tools import attempt_id
from rollout.store.run_layout import RunKind
from rollout.store.run_reader import RunReader

EPISODES = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", 0)


def configuration(model: Path, *, record: bool = True) -> RunConfig:
    return RunConfig(
        model=ModelConfig(path=str(model)),
        env=CatalogEnvConfig(),
        episode=EpisodeConfig(prompt="compact"),
        tools=ToolServerConfig(isolation=IsolationConfig(required="seccomp"), record=record),
        teacher={"episodes": EPISODES},  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher episodes, as `trialrun sft` plays them, with their tool traffic; the run is over."""
    path = tmp_path_factory.mktemp("runs") / "teacher"
    asyncio.run(run_teacher(resolve_inputs(configuration(model)), path))
    return path


@pytest.fixture(scope="module")
def episodes(run: Path) -> list[Episode]:
    reader = RunReader(run)
    return from_batch(reader.batch(reader.episodes()))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trialrun", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(str(end.value.code))


def test_every_episode_of_a_dead_run_comes_out_equal(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = TrafficReader(run / "tool_traffic").sessions
    assert sum(len(session.answers) for session in sessions) > 2 * EPISODES
    assert command(monkeypatch, "episodes", "replay", str(run), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "episodes": EPISODES,
        "equal": EPISODES,
        "different": 0,
        "left_out": 0,
    }
    assert command(monkeypatch, "episodes", str(run), "t000001") == 0  # the old way still goes
    assert "Episode t000001-00" in capsys.readouterr().out


def test_sessions_carry_the_attempt_that_they_belong_to(run: Path, episodes: list[Episode]) -> None:
    record = TrafficReader(run / "tool_traffic")
    attempts = {attempt_id(e.lease.episode, e.lease.attempt) for e in episodes}
    assert {session.episode for session in record.sessions} == attempts
    for episode in episodes:
        found = sessions_of(record, [episode])
        assert {session.seed for session in found} == {episode.lease.seed}
    record.close()


def test_sessions_are_found_by_attempt_and_without_one_by_time(
    episodes: list[Episode], tmp_path: Path
) -> None:
    episode = episodes[0]
    lease, started = episode.lease, episode.timings.started_at
    own, other = (attempt_id(lease.episode, lease.attempt + more) for more in (0, 1))
    moments = iter([started - 60, started + 0.5, started + 0.5, started + 3600])
    tools = ToolSet(tools=())

    def ids(folder: Path, *names: str) -> list[str]:
        recorder = TrafficRecorder(folder, now=lambda: next(moments))
        for number, name in enumerate(names):
            item = OpenItem(digest=tools.digest, seed=lease.seed, purpose="trial", episode=name)
            recorder.opened(f"s{number}", item, tools)
        recorder.close()
        return [session.id for session in sessions_of(TrafficReader(folder), [episode])]

    # Of its own: not the same attempt before a resume, nor another attempt at the same time.
    assert ids(tmp_path / "named", own, other, own, own) == ["s2", "s3"]
    moments = iter([started - 60, started + episode.timings.wall_s / 2, started + 3600])
    assert ids(tmp_path / "unnamed", "", "", "") == ["s1"]


async def test_differences_are_told_where_they_are(
    run: Path, model: Path, episodes: list[Episode], tmp_path: Path
) -> None:
    # By id, as a replay reports them: they are stored in the order in which they ended.
    by_id = sorted(episodes, key=lambda episode: episode.lease.episode)
    old, unrecorded = [episode for episode in by_id if len(episode.turns[0].calls) == 1][:2]
    call = old.turns[0].calls[0]
    forged = replace(
        old, turns=(replace(old.turns[0], calls=(replace(call, result="4"),)), *old.turns[1:])
    )
    other = next(episode for episode in episodes if episode not in (old, unrecorded))
    lost = replace(other, outcome=Outcome.INFRA_FAILED, reward=None)
    path = tmp_path / "forged"
    with new_run(path, configuration(model), RunKind.TEACHER) as directory:
        directory.append(to_batch([forged, unrecorded, lost]))
    record = TrafficReader(run / "tool_traffic")
    known = [session for session in record.sessions if session.seed != unrecorded.lease.seed]
    record.copy(known, path / "tool_traffic")
    report = await replay_run(path, None)
    assert (len(report.different), report.left_out) == (2, 1)
    told = report.to_json()
    assert told["where"] == "turn 1, call 1, answer"
    assert (told["recorded"], told["replayed"]) == (
        f"{call.status}: 4",
        f"{call.status}: {call.result}",
    )
    difference = report.different[1].difference
    assert difference is not None and difference.where == "turn 1"
    assert "no such session was recorded" in difference.replayed


def test_a_run_without_a_record_says_how_to_record(
    model: Path,
    episodes: list[Episode],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "silent"
    with new_run(path, configuration(model, record=False), RunKind.TEACHER) as directory:
        directory.append(to_batch(episodes))
    assert command(monkeypatch, "episodes", "replay", str(path)) == 3
    assert "tools.record = true" in capsys.readouterr().err
    assert not list(path.rglob(f"*{SUFFIX}"))


def test_the_first_difference_is_found(episodes: list[Episode]) -> None:
    old = max(episodes, key=lambda episode: len(episode.turns))
    assert first_difference(old, old) is None
    turn = old.turns[1]
    changes: dict[str, Episode] = {
        "prompt, token 3": replace(old, token_ids_T=changed(old.token_ids_T, 2)),
        "turn 2, token 1": replace(old, token_ids_T=changed(old.token_ids_T, turn.start)),
        "turn 2, observation, token 1": replace(
            old, token_ids_T=changed(old.token_ids_T, turn.end)
        ),
        "turn 2, policy error": replace(
            old, turns=(old.turns[0], replace(turn, policy_error="too_long"), *old.turns[2:])
        ),
        "turn 1, number of calls": replace(
            old, turns=(replace(old.turns[0], calls=()), *old.turns[1:])
        ),
        "turn 1, call 1": with_first_call(old, arguments="{}"),
        "turn 1, call 1, answer": with_first_call(old, result="?"),
        "turn 1, call 1, all fields": with_first_call(old, seconds=0.0),
        "outcome": replace(old, error="x"),
        "answer": replace(old, answer="x"),
        "reward": replace(old, reward=0.25),
        "reward parts": replace(old, reward_parts={}),
    }
    for where, new in changes.items():
        difference = first_difference(old, new)
        assert difference is not None and difference.where == where
        assert difference.recorded != difference.replayed


def changed(tokens: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*tokens[:index], tokens[index] + 1, *tokens[index + 1 :])


def with_first_call(episode: Episode, **changes: str | float) -> Episode:
    first = episode.turns[0]
    call: CallRecord = replace(first.calls[0], **changes)  # pyright: ignore[reportArgumentType]
    turn = replace(first, calls=(call, *first.calls[1:]))
    return replace(episode, turns=(turn, *episode.turns[1:]))
