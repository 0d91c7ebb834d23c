"""The catalog: deterministic, solvable, split without leaks, and as its doc shares promise."""

from collections import Counter
from itertools import pairwise

import pytest

from envs.errors import ConfigError
from envs.tasks import Split, Task
from envs.tasksets.catalog.environment import CatalogEnvironment
from envs.tasksets.catalog.instances import Instance
from envs.tasksets.catalog.names import SYLLABLES, names_of, split_of
from envs.tasksets.catalog.operations import OPERATIONS, named, recognise
from envs.tasksets.catalog.quirks import ARGUMENTS, KEYS, Quirk
from envs.tasksets.catalog.sampling import recurrent_tools
from tests.envs.tasksets.answers_of import score_of

SPLITS: tuple[Split, ...] = ("train", "validation", "heldout")


def drawn(split: Split, seed: int = 3, count: int = 200) -> list[Task]:
    return list(CatalogEnvironment().tasks(split, seed, count))


def run_tool(instance: Instance, **arguments: str) -> str:
    """Run a tool's source in this process: it is our own, drawn from a fixed set."""
    namespace: dict[str, object] = {}
    exec(instance.source, namespace)
    function = namespace[instance.name]
    assert callable(function)
    return str(function(**arguments))


def names_in(tasks: list[Task]) -> set[str]:
    return {tool.name for task in tasks for tool in task.tool_set.tools}


def test_same_seed_gives_equal_tasks_and_another_seed_others() -> None:
    assert drawn("train", 3, 20) == drawn("train", 3, 20)
    assert drawn("train", 3, 20) == drawn("train", 3, 40)[:20]
    assert [t.question for t in drawn("train", 3)] != [t.question for t in drawn("train", 4)]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("reverse", "4321"),
        ("rotate-left", "2341"),
        ("rotate-right", "4123"),
        ("drop-first", "234"),
        ("drop-last", "123"),
        ("double-first", "11234"),
        ("double-last", "12344"),
    ],
)
def test_operations_do_what_their_names_say_and_so_do_their_sources(name: str, result: str) -> None:
    operation = named(name)
    assert operation.apply("1234") == result
    tool = Instance("tosi", operation, Quirk(), "vague", "edit x")
    assert run_tool(tool, x="1234") == result
    assert recognise("1234", result) == operation


def test_a_key_quirk_is_named_by_the_error_and_repaired_by_the_key() -> None:
    tool = Instance("tosi", named("reverse"), Quirk("key", KEYS[0]), "vague", "edit x")
    with pytest.raises(ValueError, match=f"^needs key={KEYS[0]}$"):
        run_tool(tool, x="123")
    with pytest.raises(ValueError, match="needs key"):
        run_tool(tool, x="123", key=KEYS[1])
    assert run_tool(tool, x="123", key=KEYS[0]) == "321"


def test_an_argument_quirk_is_named_by_the_error_and_repaired_by_the_name() -> None:
    tool = Instance("tosi", named("reverse"), Quirk("argument", ARGUMENTS[0]), "vague", "edit x")
    with pytest.raises(ValueError, match=f"^use {ARGUMENTS[0]}$"):
        run_tool(tool, x="123")
    assert run_tool(tool, **{ARGUMENTS[0]: "123"}) == "321"


@pytest.mark.parametrize("split", SPLITS)
def test_every_task_is_solved_by_exactly_one_of_its_tools(split: Split) -> None:
    for task in drawn(split):
        operation, value = task.question.split()
        assert len(set(value)) == len(value)
        sources = task.tool_set.sources
        assert (
            sum(named(operation).expression in source.splitlines()[-1] for source in sources) >= 1
        )
        expressions = {source.splitlines()[-1] for source in sources}
        assert len(expressions) == len(sources) == 4
        assert score_of(task, f" {named(operation).apply(value)}\n") == 1.0
        assert score_of(task, value) == 0.0


def test_splits_share_no_name_and_no_source() -> None:
    tasks = {split: drawn(split, count=400) for split in SPLITS}
    for one, other in (*pairwise(SPLITS), ("train", "heldout")):
        assert not names_in(tasks[one]) & names_in(tasks[other])
        sources = [{s for t in tasks[split] for s in t.tool_set.sources} for split in (one, other)]
        assert not sources[0] & sources[1]
    for split in SPLITS:
        assert names_in(tasks[split]) <= set(names_of(split))
        assert {split_of(name) for name in names_in(tasks[split])} == {split}


def test_every_syllable_of_a_heldout_name_occurs_in_train() -> None:
    train = {part for name in names_of("train") for part in (name[:2], name[2:])}
    assert train == set(SYLLABLES)


def test_an_answer_is_nowhere_in_what_the_sandbox_sees() -> None:
    for task in drawn("heldout"):
        operation, value = task.question.split()
        assert named(operation).apply(value) not in "".join(task.tool_set.sources)


def test_half_of_train_recurs_and_the_rest_is_sampled_anew() -> None:
    recurrent = {tool.name for tool in recurrent_tools()}
    tasks = drawn("train", count=600)
    known = [names_in([task]) <= recurrent for task in tasks]
    assert 0.43 < sum(known) / len(tasks) < 0.57
    assert all(
        task_known or not names_in([task]) & recurrent
        for task, task_known in zip(tasks, known, strict=True)
    )


def test_quirks_and_docs_come_in_the_shares_that_are_promised() -> None:
    tasks = drawn("heldout", count=2000)
    quirks = Counter(task.tags["quirk"] for task in tasks)
    docs = Counter(task.tags["doc"] for task in tasks)
    for tag, share in (("none", 0.5), ("key", 0.25), ("argument", 0.25)):
        assert quirks[tag] / 2000 == pytest.approx(share, abs=0.04)
    for tag, share in (("vague", 0.5), ("true", 0.2), ("false", 0.3)):
        assert docs[tag] / 2000 == pytest.approx(share, abs=0.04)


def test_operations_and_positions_of_the_right_tool_are_even() -> None:
    tasks = drawn("heldout", count=1400)
    asked = Counter(task.question.split()[0] for task in tasks)
    assert set(asked) == {operation.name for operation in OPERATIONS}
    assert min(asked.values()) > 150
    places = Counter(
        next(
            index
            for index, source in enumerate(task.tool_set.sources)
            if source.splitlines()[-1] == f"    return {named(task.question.split()[0]).expression}"
        )
        for task in tasks
    )
    assert min(places.values()) > 280


def test_an_unknown_split_and_an_endless_draw_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="expected split"):
        CatalogEnvironment().tasks("test", 0, 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="a number of tasks"):
        CatalogEnvironment().tasks("train", 0, None)
