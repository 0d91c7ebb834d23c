"""`trialrun compare` and `trialrun plot` on run directories, run as commands."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.main import main
from rollout.episode import Lease, RolloutKind
from rollout.episode_schema import to_batch
from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind

Capture = pytest.CaptureFixture[str]
Command = Callable[..., tuple[int, str, str]]
MakeRun = Callable[[str, Sequence[float]], Path]


@pytest.fixture
def trialrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> Command:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        monkeypatch.setattr("sys.argv", ["trialrun", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def make_run(tmp_path: Path, fleet: Any, numbered: Any) -> MakeRun:
    """Write the evaluation of one sample per score; the first half of the tasks has depth 1."""

    def make(name: str, scores: Sequence[float]) -> Path:
        tasks = numbered.tasks("heldout", 0, 8)[: len(scores)]
        episodes = []
        for i, (task, score) in enumerate(zip(tasks, scores, strict=True)):
            lease = Lease(
                run="unit",
                episode=f"{task.id}-00",
                kind=RolloutKind.TRAIN,
                group=task.id,
                group_number=0,
                task=task.id,
                sample_index=0,
                attempt=0,
                seed=i,
            )
            depth = str(1 + i // (len(scores) // 2))
            episode = fleet.play(lease, task, 0, "w")
            parts = {"answer": score}
            episodes.append(replace(episode, tags={"depth": depth}, reward_parts=parts))
        info = RunInfo(run=name, seed=0, created_at=0.0)
        recipe = '[eval]\nsplit = "heldout"\n[tools]\nlong_gone = true\n'
        with RunDirectory.create(tmp_path / name, recipe, info) as run:
            run.append(to_batch(episodes))
        return tmp_path / name

    return make


def test_two_runs_side_by_side(trialrun: Command, make_run: MakeRun) -> None:
    make_run("sft", [0, 0, 0, 0, 1, 1, 0, 0])
    make_run("grpo", [1, 1, 1, 1, 1, 0, 1, 0])
    code, out, err = trialrun("compare", "before=sft", "grpo", "--markdown", "out.md")
    assert (code, err) == (0, "")
    assert "grpo minus before" in out
    text = Path("out.md").read_text()
    assert "| before | 8 | 8 | 0.250 [0.057, 0.649] |" in text
    assert "| all | 8 | 0.250, 0.750 | +0.500 [-0.243, +0.873] | 5 / 1 | 0.219 |" in text
    # four wins of four: p is 0.125, so the interval holds 0
    assert "| depth 1 | 4 | 0.000, 1.000 | +1.000 [-0.434, +1.000] | 4 / 0 | 0.125 |" in text
    assert "±" not in text


def test_a_program_reads_one_json_object(trialrun: Command, make_run: MakeRun) -> None:
    for name, scores in (("a1", [0, 1]), ("a2", [0, 0]), ("b1", [1, 1]), ("b2", [1, 0])):
        make_run(name, scores)
    code, out, _ = trialrun("compare", "a=a1,a2", "b=b1,b2", "--json")
    printed = json.loads(out)
    assert (code, printed["version"], printed["unit"], printed["shared"]) == (0, 1, "seed", [2, 2])
    overall = printed["rows"][0]
    difference = overall["difference"]
    assert (difference["mean"], difference["p"], difference["method"]) == (0.5, 0.5, "score")
    assert {"stderr", "low", "high"} <= difference.keys()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sft", "nowhere"), 3, "found nothing at nowhere"),
        (("sft", "sft"), 2, "write NAME=RUN"),
        (("sft", "=sft"), 2, "[NAME=]RUN"),
        (("sft", "training"), 1, "is a training run"),
        (("sft", "empty"), 3, "found no episodes in empty"),
        (("sft", "other", "--by", "novelty"), 2, "(depth) for the table's rows, found novelty"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    trialrun: Command, make_run: MakeRun, arguments: Sequence[str], code: int, message: str
) -> None:
    for name in {"sft", "other", "empty", "training"}.intersection(arguments):
        path = make_run(name, [] if name == "empty" else [0, 1])
        if name == "training":
            with RunDirectory.open(path) as run:
                run.record_metrics(1, {"loss": 0.5})
    found, out, err = trialrun("compare", *arguments)
    assert (found, out) == (code, "")
    assert message in err and err.count("\n") == 1


@pytest.mark.real
class TestDrawing:
    """matplotlib takes seconds to import."""

    PNG = b"\x89PNG"

    def test_a_comparison(self, trialrun: Command, make_run: MakeRun) -> None:
        make_run("a", [0, 1, 0, 0])
        make_run("b", [1, 1, 0, 1])
        code, _, err = trialrun("compare", "a", "b", "--plot", "out.png")
        assert (code, err) == (0, "")
        assert Path("out.png").read_bytes().startswith(self.PNG)

    def test_an_evaluation_of_an_older_recipe(self, trialrun: Command, make_run: MakeRun) -> None:
        run = make_run("a", [0, 1, 0, 0])
        assert trialrun("plot", "a")[0] == 0
        assert (run / "plot.png").read_bytes().startswith(self.PNG)
        assert json.loads((run / "eval.json").read_text())["accuracy"] == 0.25

    def test_training_by_step(self, trialrun: Command) -> None:
        path = Path("a")
        info = RunInfo(run="a", kind=RunKind.TRAIN, seed=0, created_at=0)
        with RunDirectory.create(path, "", info) as run:
            run.record_metrics(1, {"reward_mean": 0.25, "mismatch_kl": float("nan")})
            run.record_metrics(2, {"reward_mean": 0.5, "mismatch_kl": 1e-4, "lr": 1.0})
        code, out, _ = trialrun("plot", "a")
        assert (code, out) == (0, "a/plot.png\n")
        assert (path / "plot.png").read_bytes().startswith(self.PNG)
        assert json.loads((path / "plot.json").read_text())["series"] == {
            "reward_mean": {"steps": [1, 2], "values": [0.25, 0.5]},
            "mismatch": {"steps": [2], "values": [1e-4]},
        }

    def test_a_line_is_broken_where_nothing_was_measured(self) -> None:
        from cluster.evaluation.plots import with_gaps

        shown = with_gaps({1: 0.5, 3: 0.0}, [1, 2, 3])
        assert (shown[0], math.isnan(shown[1]), shown[2]) == (0.5, True, 0.0)

    def test_nothing_to_draw(self, trialrun: Command, make_run: MakeRun) -> None:
        make_run("a", [])
        code, _, err = trialrun("plot", "a")
        assert (code, "expected episodes to draw, found none" in err) == (3, True)
