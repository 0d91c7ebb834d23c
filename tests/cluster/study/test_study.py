"""The study command: its graph of stages, its recipe, its statistics; no stack is started."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_config import load_config
from cluster.study.graph import Results, Stage, StageGraph
from cluster.study.recipe import Study, load_study, read_seeds
from cluster.study.report import ModelRow, StageTime, StudyReport, to_markdown
from cluster.study.results import CeilingResult, EvaluationResult
from cluster.study.statistics import Cell, differences_of, rows_of
from envs.errors import ConfigError
from envs.tasksets.catalog.config import CatalogEnvConfig
from envs.tools import JsonObject
from rollout.evaluation.intervals import NO_INTERVAL, interval_from_error, share_interval


@dataclass
class Works:
    """Makes stages that note when they work, and that fail when told to."""

    begun: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    running: int = 0
    most: int = 0

    def stage(self, key: str, *needs: str, inputs: Any = 0, **options: Any) -> Stage:
        async def work(folder: Path, results: Results) -> JsonObject:
            self.begun.append(key)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                for _ in range(3):
                    await _next_turn()
                if key in self.failing:
                    (folder / "half").write_text("half")
                    raise RuntimeError(f"{key} was killed")
            finally:
                self.running -= 1
            return {"saw": [str(results[need]["name"]) for need in needs], "name": key}

        return Stage(key, needs, inputs, work, **options)


async def _next_turn() -> None:
    await asyncio.sleep(0)


def ignore(key: str, result: JsonObject) -> None: ...


class TestGraph:
    async def test_stages_work_after_what_they_need_and_see_its_result(
        self, tmp_path: Path
    ) -> None:
        works = Works()
        stages = [works.stage("a"), works.stage("b", "a"), works.stage("c", "a", "b")]
        results = await StageGraph(tmp_path, stages, 2).run(ignore)
        assert works.begun == ["a", "b", "c"]
        assert results["c"]["saw"] == ["a", "b"]
        assert json.loads((tmp_path / "c" / "result.json").read_text())["saw"] == ["a", "b"]

    async def test_a_killed_study_goes_on_at_the_first_unfinished_stage(
        self, tmp_path: Path
    ) -> None:
        first = Works(failing={"b"})
        with pytest.raises(RuntimeError, match="b was killed"):
            await StageGraph(tmp_path, chain(first), 1).run(ignore)
        assert first.begun == ["a", "b"]
        second, told = Works(), list[str]()
        graph = StageGraph(tmp_path, chain(second), 1)
        assert (graph.unfinished, graph.finished) == (["b", "c"], None)
        results = await graph.run(lambda key, result: told.append(key))
        assert second.begun == told == ["b", "c"]
        assert list(results) == ["a", "b", "c"] and graph.finished == results
        assert (tmp_path / "b" / "half").exists(), "what a killed attempt left is there to resume"
        third = Works()
        await StageGraph(tmp_path, chain(third), 1).run(ignore)
        assert third.begun == []

    @pytest.mark.parametrize("key", ["a", "b"])
    async def test_a_result_of_other_inputs_is_refused(self, tmp_path: Path, key: str) -> None:
        works = Works()
        await StageGraph(tmp_path, chain(works), 1).run(ignore)
        other = [
            works.stage("a", inputs=int(key == "a")),
            works.stage("b", "a", inputs=int(key == "b")),
        ]
        graph = StageGraph(tmp_path, other, 1)
        with pytest.raises(ConfigError, match=rf"{key} was made from another recipe"):
            await graph.run(ignore)

    async def test_what_is_made_of_another_result_is_another_result(self, tmp_path: Path) -> None:
        works = Works()
        await StageGraph(tmp_path, chain(works), 1).run(ignore)
        (tmp_path / "a" / "result.json").unlink()
        changed = [works.stage("a", inputs="changed"), works.stage("b", "a")]
        with pytest.raises(ConfigError, match="b was made from another recipe"):
            await StageGraph(tmp_path, changed, 1).run(ignore)

    async def test_an_order_for_the_machines_sake_makes_no_other_result(
        self, tmp_path: Path
    ) -> None:
        works = Works()
        await StageGraph(tmp_path, [works.stage("a"), works.stage("b")], 1).run(ignore)
        later = [works.stage("a"), works.stage("new"), works.stage("b", after=("new",))]
        assert StageGraph(tmp_path, later, 1).unfinished == ["new"]

    @pytest.mark.parametrize(("slots", "most"), [(1, 1), (2, 2), (3, 3)])
    async def test_no_more_work_at_once_than_slots(
        self, tmp_path: Path, slots: int, most: int
    ) -> None:
        works = Works()
        await StageGraph(tmp_path, [works.stage(str(i)) for i in range(5)], slots).run(ignore)
        assert works.most == most

    async def test_a_stage_that_takes_all_slots_works_alone(self, tmp_path: Path) -> None:
        works = Works()
        whole = [works.stage("a", slots=2), works.stage("b", slots=9), works.stage("c", slots=2)]
        await StageGraph(tmp_path, whole, 2).run(ignore)
        assert (works.most, works.begun) == (1, ["a", "b", "c"])

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda works: [works.stage("a"), works.stage("a")], "one stage a, found two"),
            (lambda works: [works.stage("b", "a"), works.stage("a", "b")], "b needs a, which no"),
        ],
    )
    def test_stages_in_a_circle_or_twice_are_refused(
        self, tmp_path: Path, make: Callable[[Works], list[Stage]], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            StageGraph(tmp_path, make(Works()), 1)


def chain(works: Works) -> list[Stage]:
    return [works.stage("a"), works.stage("b", "a"), works.stage("c", "b")]


class TestRecipe:
    def test_arms_and_settings_change_what_they_name_and_nothing_else(self) -> None:
        study = load_study("study")
        config = study.evaluating("blocked", "depth2-compositions", "greedy")
        assert config.episode.trial.calls == 0
        assert config.episode.trial.tokens == study.config.episode.trial.tokens
        assert isinstance(config.env, CatalogEnvConfig)
        assert config.env.catalog.depths == {"2": 1.0}, "a table of weights is one value"
        assert config.env.catalog.novelty == ("compositions",)
        assert (config.eval.temperature, config.eval.tasks) == (0.0, study.config.eval.tasks)
        assert study.evaluating("direct", "depth1-names", "T=1").episode.mode == "direct"
        assert study.training("trial-grpo").episode.mode == "trial"
        assert study.training("grpo-no-trial-tokens").learner.phase_weights.trial == 0

    def test_no_baseline_is_taught_less_than_the_arm_it_stands_beside(self) -> None:
        study = load_study("study")
        trial = study.training("trial-sft")
        for name in ("direct", "direct-copy"):
            direct = study.training(name)
            assert direct.teacher.episodes > trial.teacher.episodes
            seen = direct.teacher.episodes * direct.sft.epochs
            assert seen >= 3 * trial.teacher.episodes * trial.sft.epochs, "and half as long"
        copying = study.training("direct-copy").env
        assert isinstance(copying, CatalogEnvConfig)
        assert copying.catalog.recurrent == 0

    def test_only_some_arms_need_only_their_models(self) -> None:
        study = load_study("study").only(["trial-sft", "trial-more-sft"])
        assert set(study.section.models) == {"trial-sft", "trial-grpo", "trial-more-sft"}
        assert study.section.arms["trial-sft"].against == ()
        assert study.section.arms["trial-more-sft"].against == ("trial-sft",)
        with pytest.raises(ConfigError, match="no arm called 'magic'"):
            study.only(["magic"])

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("models.trial-sft.parent=trial-grpo", "a circle"),
            ("models.trial-sft.parent=nobody", "parent: expected one of direct, "),
            ("models.trial-more-sft.match=direct", "match: expected a grpo model"),
            ("models.trial-grpo.match=trial-grpo", "match with kind = 'sft' only"),
            ("models.direct.kind=ppo", "models.direct.kind: "),
            ("models.direct.changes.episode.mood=1", "episode.mood: unknown key"),
            ("models.trial-grpo.changes.episode.top_p=0.5", "expected episode.top_p = 1"),
            ("models.trial-grpo.changes.episode.experience=dropped", "experience = 'carried'"),
            ("arms.direct.model=nobody", "arms.direct.model: expected one of"),
            ("arms.direct.against=['nobody']", "arms.direct.against: expected one of"),
            ("arms.direct.changes.run.sede=1", "run.sede: unknown key"),
            ("settings.depth1-names.env.catalog.depths={}", "depths"),
            ("ceilings=['depth9']", "ceilings: expected one of depth1-names"),
            ("arm.direct.model=1", "did you mean study.arms.direct.model?"),
        ],
    )
    def test_a_study_that_cannot_work_is_refused_before_it_starts(
        self, override: str, message: str
    ) -> None:
        with pytest.raises(ConfigError) as refusal:
            load_study("study", [f"study.{override}"])
        assert message in str(refusal.value)

    def test_a_recipe_without_a_study(self) -> None:
        with pytest.raises(ConfigError, match="describes no study"):
            load_study("catalog")

    def test_the_digest_is_of_what_results_depend_on(self) -> None:
        same, moved = load_study("study"), load_study("study", ["run.dir=elsewhere"])
        assert same.digest == moved.digest
        for override in ("sft.epochs=4", "study.arms.blocked.changes.episode.trial.calls=1"):
            assert load_study("study", [override]).digest != same.digest

    @pytest.mark.parametrize(
        ("text", "seeds"), [("3", (7, 8, 9)), ("11,12, 13", (11, 12, 13)), ("5,", (5,))]
    )
    def test_seeds(self, text: str, seeds: tuple[int, ...]) -> None:
        assert read_seeds(text, 7) == seeds

    @pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,1", "1;2"])
    def test_bad_seeds(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--seeds"):
            read_seeds(text, 7)


def cells(arm: str, scores: Sequence[float], setting: str = "names") -> list[Cell]:
    return [
        Cell(
            seed=seed,
            arm=arm,
            setting=setting,
            temperature="T=1",
            accuracy=score,
            stderr=0.03,
            interval=interval_from_error(score, 0.03, 96),
            tasks=96,
            trial_calls=float(seed),
        )
        for seed, score in enumerate(scores, start=1)
    ]


class TestStatistics:
    def test_mean_and_standard_error_over_seeds(self) -> None:
        """0.2, 0.4, 0.9: mean 0.5, variance (0.09 + 0.01 + 0.16) / 2 = 0.13, over 3, root."""
        [row] = rows_of(cells("a", [0.2, 0.4, 0.9]))
        assert row.accuracy.mean == pytest.approx(0.5)
        assert row.accuracy.stderr == pytest.approx((0.13 / 3) ** 0.5)
        assert (row.accuracy.seeds, row.trial_calls) == (3, 2.0)
        by_hand = share_interval([(0.2, 1.0), (0.4, 1.0), (0.9, 1.0)], units=96)
        assert row.accuracy.interval == by_hand

    def test_seeds_that_solve_everything_are_no_certainty(self) -> None:
        """Five seeds of 96 tasks are at most 480 draws, with the t of five seeds."""
        [row] = rows_of(cells("a", [1.0] * 5))
        assert row.accuracy.stderr == 0.0
        assert row.accuracy.low == pytest.approx(480 / (480 + 2.7764**2), abs=1e-5)
        assert row.accuracy.high == 1.0

    def test_one_seed_has_the_error_of_its_tasks(self) -> None:
        [row] = rows_of(cells("a", [0.2]))
        assert (row.accuracy.mean, row.accuracy.stderr) == (0.2, 0.03)
        assert row.accuracy.interval == interval_from_error(0.2, 0.03, 96)

    def test_the_best_rival_is_chosen_by_mean_and_compared_seed_by_seed(self) -> None:
        """Differences 0.4, 0.5, 0.6: mean 0.5, sd 0.1, so 0.5 / (0.1 / sqrt 3) = 8.66."""
        played = [
            *cells("a", [0.5, 0.7, 0.9]),
            *cells("weak", [0.5, 0.0, 0.0]),
            *cells("best", [0.1, 0.2, 0.3]),
        ]
        [found] = differences_of(played, {"a": ["weak", "best"], "best": ["absent"]})
        assert (found.arm, found.best, found.accuracy.seeds) == ("a", "best", 3)
        assert found.accuracy.mean == pytest.approx(0.5)
        assert found.accuracy.stderr == pytest.approx(0.1 / 3**0.5)
        assert found.accuracy.in_stderrs == pytest.approx(5 * 3**0.5)

    def test_the_best_rival_is_another_one_in_another_setting(self) -> None:
        played = [
            *(*cells("a", [0.9, 0.9]), *cells("x", [0.5, 0.5]), *cells("y", [0.1, 0.1])),
            *(*cells("a", [0.9, 0.9], "new"), *cells("x", [0.1, 0.1], "new")),
            *cells("y", [0.2, 0.2], "new"),
        ]
        found = differences_of(played, {"a": ["x", "y"]})
        assert [(each.setting, each.best) for each in found] == [("names", "x"), ("new", "y")]

    def test_of_one_seed_the_errors_of_both_evaluations_add_up(self) -> None:
        [found] = differences_of([*cells("a", [0.6]), *cells("b", [0.2])], {"a": ["b"]})
        assert found.accuracy.mean == pytest.approx(0.4)
        assert found.accuracy.stderr == pytest.approx((2 * 0.03**2) ** 0.5)
        mine, its = interval_from_error(0.6, 0.03, 96), interval_from_error(0.2, 0.03, 96)
        assert mine.low is not None and its.high is not None
        down = ((0.6 - mine.low) ** 2 + (its.high - 0.2) ** 2) ** 0.5
        assert found.accuracy.low == pytest.approx(0.4 - down)

    def test_only_shared_seeds_are_compared(self) -> None:
        played = [*cells("a", [0.6, 0.8, 1.0]), *cells("b", [0.2, 0.2])]
        [found] = differences_of(played, {"a": ["b"]})
        assert (found.accuracy.mean, found.accuracy.seeds) == (pytest.approx(0.5), 2)

    def test_equal_differences_have_no_ratio(self) -> None:
        played = [*cells("a", [0.75, 0.75]), *cells("b", [0.25, 0.25])]
        [found] = differences_of(played, {"a": ["b"]})
        assert (found.accuracy.stderr, found.accuracy.in_stderrs) == (0.0, None)
        assert found.accuracy.low is not None and found.accuracy.high is not None
        assert found.accuracy.low < 0.5 < found.accuracy.high, "two seeds are no certainty"


def report_of(study: Study, played: Sequence[Cell]) -> StudyReport:
    stored: JsonObject = {
        **{"digest": "d", "seconds": 90.0},
        **{"played_episodes": 7, "trained_tokens": 8, "optimizer_steps": 9},
    }
    model = ModelRow(1, "trial-sft", stored)
    times = [StageTime(1, "models/trial-sft", 90.0), StageTime(1, "evals/x", 30.0)]
    ceiling = CeilingResult(setting="depth1-names", success=0.375, standard_error=0.01, tasks=400)
    ceilings = {"depth1-names": ceiling}
    return StudyReport(study, played, ceilings, times, [model], [], {"torch": "2"})


def test_the_page_holds_every_number_a_reader_asks_for() -> None:
    study = load_study("study").only(["blocked", "trial-sft"])
    played = [
        *cells("blocked", [0.1, 0.2, 0.3], "depth1-names"),
        *cells("trial-sft", [0.5, 0.7, 0.9], "depth1-names"),
    ]
    page = to_markdown(report_of(study, played))
    settings = len(study.section.settings)
    ceiling = "best possible without trials, texts from tools | 0.375 [0.356, 0.395]"
    assert f"| {ceiling} |{' - |' * (settings - 1)}" in page
    assert f"| trial SFT | 0.700 [0.236, 0.946] |{' - |' * (settings - 1)}" in page
    difference = "+0.500 [+0.184, +0.722] | +8.7"
    assert f"| trial SFT | depth1-names | trial SFT, trials blocked | {difference} |" in page
    assert "±" not in page
    assert "- seeds: 1, 2, 3" in page and study.digest in page and "torch 2" in page
    assert "| trial-sft | 1 | 7 | 8 | 9 | 1.5 |" in page
    numbers = json.loads(json.dumps(report_of(study, played).to_json()))
    assert numbers["differences"][0]["in_stderrs"] == pytest.approx(5 * 3**0.5)
    assert numbers["wall_s"] == 120.0
    assert numbers["ceilings"] == {"depth1-names": 0.375}
    assert numbers["ceiling_estimates"]["depth1-names"]["high"] == pytest.approx(0.395, abs=1e-3)


def test_results_that_an_older_version_stored_are_read() -> None:
    """They have a standard error and no interval; a ceiling did not say how many tasks it had."""
    stored = {
        **{"arm": "a", "setting": "s", "temperature": "greedy", "accuracy": 1.0, "stderr": 0.0},
        **{"trial_calls_per_episode": 1.0, "tasks": 96},
    }
    found = EvaluationResult.model_validate(stored)
    assert found.interval == share_interval([(1.0, 1.0)] * 96)
    alone = EvaluationResult.model_validate({**stored, "stderr": None, "tasks": 1})
    assert alone.interval == NO_INTERVAL
    ceiling = CeilingResult.model_validate(
        {"setting": "s", "success": 0.5, "standard_error": 0.02, "seconds": 1.0}
    )
    assert (ceiling.tasks, ceiling.interval) == (0, NO_INTERVAL)


def test_training_refuses_an_execution_that_forgot_its_trials() -> None:
    with pytest.raises(ConfigError, match="experience = 'carried'"):
        load_config("catalog", ["episode.experience=dropped"]).check_trainable()
    with pytest.raises(ConfigError, match="expected mode = 'trial'"):
        load_config("catalog", ["episode.experience=dropped", "episode.mode=direct"])
