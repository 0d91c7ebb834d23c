"""Each of the dozen tasks that ship with the project is solvable, by the chain of calls here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from envs.argument_check import check_arguments
from envs.config import EnvConfig, IsolationConfig, ToolServerConfig
from envs.tool_client import ToolClient
from envs.tool_process import ToolServerProcess
from envs.toolhop import OWN_TASKS, ToolHopEnvironment
from envs.tools import AnswerStatus, JsonObject, ToolCall, ToolSet

CONFIG = ToolServerConfig(isolation=IsolationConfig(required="seccomp"))


@dataclass(frozen=True, slots=True)
class Hop:
    """A call that misleads a newcomer, then the call that works, and its value."""

    tool: str
    naive: JsonObject | None
    works: JsonObject
    value: str


CHAINS: dict[int, list[Hop]] = {
    9201: [
        Hop(
            "resident_register",
            {"person": "Mirel Tassov", "field": "birthplace"},
            {"person": "Tassov, Mirel", "field": "birthplace"},
            "Oskar Skerry",
        ),
        Hop(
            "lighthouse_almanac",
            {"place": "Oskar Skerry"},
            {"place": "Oskar Skerry", "event": "first_lit"},
            "1871",
        ),
        Hop("reverse_digits", None, {"number": "1871"}, "1781"),
    ],
    9202: [
        Hop(
            "film_credits",
            {"title": "Salt Orchard", "role": "director"},
            {"title": "SALT ORCHARD"},
            "Ilona Brecht",
        ),
        Hop(
            "letter_at",
            None,
            {"word": "Ilona", "position": 5},
            "a",
        ),
        Hop(
            "join_letters",
            {"letters": ["a", "b"]},
            {"letters": ["a", "b"], "separator": ""},
            "ab",
        ),
    ],
    9203: [
        Hop(
            "structure_file",
            {"structure": "Halden Viaduct"},
            {"structure": "Halden viadukt", "language": "no"},
            "18.4.1927",
        ),
        Hop(
            "date_shift",
            {"date": "1927-04-18", "days": 45},
            {"date": "1927-04-18", "days": 45, "direction": "on"},
            "1927-06-02",
        ),
    ],
    9204: [
        Hop(
            "summit_survey",
            {"summit": "Mount Everell", "survey": "Crown Survey"},
            {"summit": "Everell", "survey": "crown"},
            "1250",
        ),
        Hop("summit_survey", None, {"summit": "Sorrow", "survey": "crown"}, "1032"),
        Hop("subtract", None, {"subtrahend": 1032, "minuend": 1250}, "218"),
        Hop(
            "convert_length",
            {"value": 218, "unit_from": "span", "unit_to": "metre"},
            {"value": 218, "unit_from": "sp", "unit_to": "m", "digits": 0},
            "435",
        ),
    ],
    9205: [
        Hop("registry_lookup_2", {"site": "Quillon mill"}, {"site": "Quillon"}, "Ferris ring loom"),
        Hop(
            "registry_lookup",
            {"machine": "Ferris ring loom", "column": "holder"},
            {"machine": "Ferris ring loom", "column": "holder", "year": 1899},
            "Beata Lindqvist",
        ),
    ],
    9206: [
        Hop(
            "voyage_index",
            {"place": "Cape Myrrhine"},
            {"place": "Cape Myrrhine", "limit": 9},
            "Amaranth",
        ),
        Hop(
            "crew_list",
            {"ship": "Amaranth", "year": 1741, "post": "captain"},
            {"ship": "Amaranth", "year": 41, "post": "captain"},
            "Yolanda Eyre-Quaye",
        ),
        Hop(
            "vowel_counter",
            {"text": "Yolanda Eyre-Quaye"},
            {"text": "Yolanda Eyre-Quaye", "count_y": False},
            "8",
        ),
    ],
    9207: [
        Hop(
            "artisan_directory",
            {"surname": "Achterberg", "craft": "pottery"},
            {"surname": "Achterberg", "craft": "ceramics", "given_name": "Ruben"},
            "Vellmar",
        ),
        Hop(
            "census_table",
            {"town": "Vellmar", "source": {"year": 1911}},
            {"town": "Vellmar", "source": {"year": 1911, "table": "B"}},
            "8482",
        ),
        Hop("digit_sum", None, {"number": 8482}, "22"),
    ],
    9208: [
        Hop(
            "recipe_box",
            {"dish": "winter harrow", "kind": "spice"},
            {"dish": "winter harrow", "kind": "spice", "show_hidden": True},
            "duskroot",
        ),
        Hop("origin_of", {"product": "duskroot"}, {"product": "duskroots"}, "Lower Cassaly"),
        Hop(
            "gazetteer",
            {"region": "Lower Cassaly", "fact": "capital"},
            {"region": "Cassaly, Lower", "fact": "seat"},
            "Port Ashling",
        ),
    ],
    9209: [
        Hop(
            "cup_results",
            {"cup": "Tarn Cup", "year": 1958},
            {"cup": "Tarn Cup", "year": 1958, "page": 2},
            "7",
        ),
        Hop(
            "fixture_date",
            {"cup": "Tarn Cup 1958", "game": "7"},
            {"cup": "Tarn Cup 1958", "game": "G7"},
            "1958-08-14",
        ),
        Hop(
            "weekday",
            {"year": 1958, "month": 8, "day": 14},
            {"year": 1958, "month": 8, "day": 14, "style": "name"},
            "Thursday",
        ),
    ],
    9210: [
        Hop(
            "charter_roll",
            {"town": "Greyling"},
            {"town": "Greyling", "include_title": False},
            "Osric XIV",
        ),
        Hop("roman_to_integer", {"numeral": "XIV"}, {"numeral": "xiv"}, "14"),
        Hop(
            "count_structures",
            {"town": "Greyling", "kind": "bridges"},
            {"town": "Greyling", "kind": "bridge"},
            "7",
        ),
        Hop("multiply", {"factors": "14x7"}, {"factors": "14*7"}, "98"),
    ],
    9211: [
        Hop(
            "archive_staff",
            {"archive": "Brindle Archive", "post": "keeper"},
            {"archive": "Brindle Archive", "post": "keeper", "on": "today"},
            "Agnes Korhonen",
        ),
        Hop(
            "initials", {"name": "Agnes Korhonen"}, {"name": "Agnes Korhonen", "which": "last"}, "K"
        ),
        Hop("to_binary", {"value": "Korhonen"}, {"value": "K", "prefix": False}, "1001011"),
    ],
    9212: [
        Hop(
            "prize_winners",
            {"prize": "Carrow Prize", "year": "1983"},
            {"prize": "Carrow Prize", "year": "1983/84"},
            "Delphine Aster",
        ),
        Hop(
            "works_of",
            {"author": "Delphine Aster"},
            {"author": "Delphine Aster", "after": "The Understanding of Herons"},
            "A Considerable Tidewrack",
        ),
        Hop(
            "find_longest_word",
            {"text": "A Considerable Tidewrack"},
            {"text": "A Considerable Tidewrack", "ignore": 99},
            "Considerable",
        ),
        Hop("count_letters", None, {"word": "Considerable"}, "12"),
    ],
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
    session = await client.open(tool_set, 1, "execution")
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
    environment = ToolHopEnvironment(EnvConfig(name="toolhop"))
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
    assert task.scorer.score(answers[len(chain) - 1]).reward == 1.0
    assert chain[-1].value == entry["answer"]
