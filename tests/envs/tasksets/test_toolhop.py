"""ToolHop: the file's errors, the pairing of tools and sources, the scorer and the split."""

import json
from pathlib import Path

import pytest

from envs.errors import ConfigError, DataFileError, MissingError
from envs.tasks import Environment
from envs.tasksets.collection import split_of
from envs.tasksets.toolhop.config import ToolHopEnvConfig
from envs.tasksets.toolhop.environment import OWN_TASKS, ToolHopEnvironment, ToolHopScorer

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "toolhop" / "ToolHop-sample60.json"

Entry = dict[str, object]


def tool(name: str, *arguments: str) -> Entry:
    properties = {argument: {"type": "string"} for argument in arguments}
    parameters = {"type": "object", "properties": properties, "required": []}
    return {"name": name, "description": "", "parameters": parameters}


def question(**changes: object) -> Entry:
    return {
        "id": 1,
        "question": "Who?",
        "answer": "Ada",
        "sub_task": {"Who?": "Ada"},
        "tools": {"Who?": tool("find", "name")},
        "functions": ["def find(name):\n    return 'Ada'\n"],
        "domain": "Names",
        "answer_type": "string",
        "previous_answer_type": "string",
    } | changes


def environment(path: Path, *entries: Entry) -> ToolHopEnvironment:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return ToolHopEnvironment(ToolHopEnvConfig(path=str(path)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ToolHop.json"


# The file


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere\.json.*env\.path") as caught:
        ToolHopEnvironment(ToolHopEnvConfig(path=str(tmp_path / "nowhere.json")))
    assert caught.value.exit_code == 3


def test_broken_json_names_its_line(file: Path) -> None:
    file.write_text('[\n{"id": 1,\n"question" "Who?"}]')
    with pytest.raises(DataFileError, match=r"ToolHop\.json, line 3") as caught:
        ToolHopEnvironment(ToolHopEnvConfig(path=str(file)))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", ["{}", "[]", '"text"', "[3]"])
def test_other_json_is_refused(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(DataFileError, match=r"expected a (non-empty JSON list|JSON object)"):
        ToolHopEnvironment(ToolHopEnvConfig(path=str(file)))


def test_not_utf8_is_refused(file: Path) -> None:
    file.write_bytes(b'["\xff"]')
    with pytest.raises(DataFileError, match="UTF-8"):
        ToolHopEnvironment(ToolHopEnvConfig(path=str(file)))


@pytest.mark.parametrize(
    "field", ["id", "question", "answer", "sub_task", "tools", "functions", "domain", "answer_type"]
)
def test_missing_field_is_named_with_its_task(file: Path, field: str) -> None:
    entry = question(id=7)
    del entry[field]
    identity = "missing" if field == "id" else "7"
    with pytest.raises(DataFileError, match=rf"task 1 \(id {identity}\), field `{field}`"):
        environment(file, question(), entry)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answer": 15}, "answer"),
        ({"id": True}, "id"),
        ({"functions": "def f(): ..."}, "functions"),
        ({"functions": []}, "functions"),
        ({"tools": {}}, "tools"),
        ({"tools": {"Who?": {"name": "find", "description": ""}}}, "tools.Who?.parameters"),
        ({"tools": {"Who?": tool("find") | {"name": ""}}}, "tools.Who?.name"),
        ({"tools": {"Who?": tool("find") | {"parameters": {"type": "array"}}}}, "parameters.type"),
    ],
)
def test_wrong_field_is_named(file: Path, changes: Entry, field: str) -> None:
    with pytest.raises(DataFileError) as caught:
        environment(file, question(**changes))
    message = str(caught.value)
    assert "task 0 (id" in message
    assert field in message.partition("field `")[2].partition("`")[0]


def test_repeated_id_is_refused(file: Path) -> None:
    with pytest.raises(DataFileError, match=r"task 1 \(id 1\).*task 0"):
        environment(file, question(), question())


# Tools and their sources


def test_sources_are_found_by_name_not_by_order(file: Path) -> None:
    entry = question(
        tools={"b": tool("second", "x"), "a": tool("first", "x")},
        functions=["def first(x): return 1", "import re\ndef second(x): return 2"],
    )
    tool_set = environment(file, entry).all_tasks()[0].tool_set
    assert [spec.name for spec in tool_set.tools] == ["second", "first"]
    assert tool_set.functions == ("second", "first")
    assert tool_set.sources == ("import re\ndef second(x): return 2", "def first(x): return 1")


def test_shared_name_is_told_apart_by_parameters_and_made_callable(file: Path) -> None:
    entry = question(
        tools={"a": tool("find", "name", "locale"), "b": tool("find", "name", "case")},
        functions=["def find(name, case=None): ...", "def find(name, locale=None): ..."],
    )
    tool_set = environment(file, entry).all_tasks()[0].tool_set
    assert [spec.name for spec in tool_set.tools] == ["find", "find_2"]
    assert tool_set.functions == ("find", "find")
    assert "locale" in tool_set.sources[0]
    assert "case" in tool_set.sources[1]


def test_suffix_never_takes_the_name_of_another_tool(file: Path) -> None:
    entry = question(
        tools={"a": tool("find", "x"), "b": tool("find", "y"), "c": tool("find_2", "z")},
        functions=["def find(x): ...", "def find(y): ...", "def find_2(z): ..."],
    )
    tool_set = environment(file, entry).all_tasks()[0].tool_set
    assert [spec.name for spec in tool_set.tools] == ["find", "find_3", "find_2"]


def test_source_without_the_name_gives_its_last_function(file: Path) -> None:
    entry = question(functions=["def inner(x): ...\ndef lookup(name): ...\nprint(lookup('Ada'))"])
    read = environment(file, entry)
    assert read.all_tasks()[0].tool_set.functions == ("lookup",)
    assert read.report.choices == {"last definition": 1}


@pytest.mark.parametrize("source", ["def find(name:", "", "x = 1", "\x00", "(" * 500])
def test_source_that_does_not_parse_still_makes_a_tool(file: Path, source: str) -> None:
    read = environment(file, question(functions=[source]))
    tool_set = read.all_tasks()[0].tool_set
    assert (tool_set.sources, tool_set.functions) == ((source,), ("find",))
    assert read.report.choices == {"unparsable": 1}


def test_reading_executes_nothing(file: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    environment(file, question(functions=[f"open({str(mark)!r}, 'w')\ndef find(name): ..."]))
    assert not mark.exists()


def test_no_answer_reaches_the_tool_set(file: Path) -> None:
    entry = question(
        answer="SECRET", sub_task={"Who?": "SECRET"}, functions=["def find(name): ..."]
    )
    task = environment(file, entry).all_tasks()[0]
    assert "SECRET" not in task.tool_set.model_dump_json()
    assert "SECRET" not in task.question


# The scorer


@pytest.mark.parametrize(
    ("expected", "answer", "right", "exact"),
    [
        ("15", "15", 1, 1),
        ("15", "The sum is 15.", 1, 0),
        ("15", "1915", 1, 0),
        ("15", "51", 0, 0),
        ("Philip", "philip", 1, 1),
        ("Philip", "phil", 0, 0),
        ("O'Sullivan", "Mary O'Sullivan", 1, 0),
        ("9098", "9,098", 1, 1),
        ("1,234", "1234", 1, 1),
        ("1,234", "It is 1,234.", 1, 0),
        ("Ada, Countess of Lovelace", "ada, countess of lovelace", 1, 1),
        (",", "anything", 0, 0),
        ("289.0", "289", 1, 1),
        ("289.0", "289.", 1, 1),
        ("360", "36", 1, 0),
        ("360", "360", 1, 1),
        ("1992-09-06", "1992-09-06", 1, 1),
        ("1992-09-06", "6 September 1992", 0, 0),
        ("0", "7", 0, 0),
        ("0", "0", 1, 1),
        ("0", "", 0, 0),
        ("15", "", 0, 0),
    ],
)
def test_scores_as_toolhop_does(expected: str, answer: str, right: int, exact: int) -> None:
    score = ToolHopScorer(expected).score(answer)
    assert score.reward == right
    assert score.parts == {"answer": right, "exact": exact}


# The split


def many(path: Path) -> ToolHopEnvironment:
    return environment(path, *[question(id=i) for i in range(400)])


def test_splits_are_disjoint_complete_and_of_the_asked_size(file: Path) -> None:
    read = many(file)
    names = ("train", "validation", "heldout")
    ids = {split: {task.id for task in read.tasks(split, 0, None)} for split in names}
    assert sum(len(part) for part in ids.values()) == 400
    assert set().union(*ids.values()) == {task.id for task in read.all_tasks()}
    assert 60 <= len(ids["heldout"]) <= 100
    assert 20 <= len(ids["validation"]) <= 45
    assert {split: len(part) for split, part in ids.items()} == read.report.splits


def test_split_depends_on_the_id_alone(file: Path) -> None:
    splits = {task.id: task.split for task in many(file).all_tasks()}
    alone = environment(file, question(id=17)).all_tasks()[0]
    assert splits["toolhop-17"] == alone.split == split_of("toolhop", "17", 20)
    assert split_of("toolhop", "17", 100) == "heldout"
    assert split_of("toolhop", "17", 0) != "heldout"


def test_drawing_is_by_seed(file: Path) -> None:
    read = many(file)
    first = [task.id for task in read.tasks("train", 3, 8)]
    assert first == [task.id for task in many(file).tasks("train", 3, 8)]
    assert first != [task.id for task in read.tasks("train", 4, 8)]
    assert first == [task.id for task in read.tasks("train", 3, None)][:8]


def test_split_that_cannot_give_enough_is_an_error(file: Path) -> None:
    read = environment(file, question())
    with pytest.raises(ConfigError, match="expected 2 tasks in the train split"):
        read.tasks(read.all_tasks()[0].split, 0, 2)
    with pytest.raises(ConfigError, match="found none among 1"):
        read.tasks("heldout", 0, None)


def test_is_an_environment(file: Path) -> None:
    read: Environment = environment(file, question())
    assert read.name == "toolhop"


# The real sample


@pytest.mark.skipif(
    not SAMPLE.is_file(), reason="the ToolHop sample does not lie beside the checkout"
)
def test_real_sample_is_read_whole() -> None:
    read = ToolHopEnvironment(ToolHopEnvConfig(path=str(SAMPLE)))
    assert read.report.tasks == 60
    assert read.report.choices == {"named": 264}
    for task in read.all_tasks():
        names = [spec.name for spec in task.tool_set.tools]
        assert len(set(names)) == len(names)
        for source, function in zip(task.tool_set.sources, task.tool_set.functions, strict=True):
            assert f"def {function}(" in source


# The tasks that ship with the project


def test_own_tasks_fill_every_split() -> None:
    read = ToolHopEnvironment(ToolHopEnvConfig())
    assert read.path == OWN_TASKS
    assert read.report.choices == {"named": read.report.tools}
    assert read.report.tasks == 12
    assert all(read.report.splits.values())


def test_own_tasks_hide_their_answers_from_the_question() -> None:
    for entry in json.loads(OWN_TASKS.read_text(encoding="utf-8")):
        assert entry["answer"] not in entry["question"]
        assert entry["sub_task"].keys() == entry["tools"].keys()
