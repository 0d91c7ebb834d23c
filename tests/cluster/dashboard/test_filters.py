"""The filter language: what it matches, and what it says where it is wrong."""

import pytest

from cluster.dashboard.filters.compiling import compile_filter
from cluster.dashboard.filters.fields import EXAMPLES, FACETS, FIELDS, HISTOGRAMS
from cluster.dashboard.problems import ApiError
from tests.cluster.dashboard.conftest import Dashboard
from tests.cluster.dashboard.sample_run import GROUP, STORED


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", STORED),
        ("reward=0.25", 4),
        ("reward = null", 2),
        ("reward!=null", STORED - 2),
        ("reward<0.5 and outcome=answered", 8),
        ("not reward>=0.5", 2 + 8),
        ('tool("search").errors>0', 5),
        ('tool("search").errors=0', STORED - 5),
        ('tool("nobody").calls=0', STORED),
        ('tool("nobody").calls>0', 0),
        ('tool("search").calls in (0, 1)', STORED),
        ('tool("search").seconds>0.2 and tool("search").slowest<0.3', STORED),
        ('phase("trial").calls=1 and phase("execution").tokens=3', STORED),
        ('part("answer")>0.5', 10),
        ('part("length")=-0.125', STORED - 2),
        ('tag("depth")="2"', 2 * GROUP + 1),
        ('tag("nothing")="2"', 0),
        ("answer_in_tool", GROUP * 5),
        ("not answer_in_tool", 2),
        ('flag("answer_in_tool")=false', 2),
        ("loop or garbled or truncated", 0),
        ("state=dropped and reason=zero_variance", GROUP),
        ("state in (trained, retried)", 13),
        ('error ~ "REFUSED"', 2),
        ('answer ~ "value [23]"', 10),
        ('answer !~ "value"', 2),
        ("calls=2 and turns=3", STORED),
        ("staleness=0", 8),
        ("advantage>0", 6 + 4),
        ("split=train and (sample_index=0 or sample_index=3)", 6),
        ("wall_s=2 AND env=catalog", STORED),
        ("worker='worker-1'", 5 * 2 + 1),
        ("tokens=12 and version=0", STORED),
        ("started_at>1700000040", 4),
    ],
)
def test_a_filter_matches_what_it_says(dashboard: Dashboard, text: str, count: int) -> None:
    assert dashboard.get(f"{dashboard.run}/filter", filter=text)["total"] == count


@pytest.mark.parametrize(
    ("text", "stretch", "suggestion"),
    [
        ("rewrad>1", "rewrad", "reward"),
        ("reward>1 and outcom=answered", "outcom", "outcome"),
        ("outcome=anwsered", "anwsered", "answered"),
        ('tool("x").eror>1', "eror", "errors"),
        ('phase("trail").calls=1', '"trail"', "trial"),
        ('flag("lop")', '"lop"', "loop"),
        ("reward>1 & loop", "&", "and"),
        ('tol("x").calls>1', "tol", "tool"),
    ],
)
def test_a_typing_error_is_found_and_mended(text: str, stretch: str, suggestion: str) -> None:
    with pytest.raises(ApiError) as caught:
        compile_filter(text)
    place = caught.value.place
    assert place is not None
    assert text[place.position : place.position + place.length] == stretch
    assert suggestion in place.suggestions
    mended = text[: place.position] + text[place.position :].replace(
        stretch, f'"{suggestion}"' if stretch.startswith('"') else suggestion, 1
    )
    if stretch != "&":
        compile_filter(mended)


@pytest.mark.parametrize(
    "text",
    [
        "reward", "reward>", "reward>'a'", "outcome>1", "reward ~ 'a'", "loop=3", "(reward>1",
        "reward>1)", "reward in ()", "reward in (1", 'tool("x")', 'tool.calls>1', "tool(1).calls=1",
        'part("a").b>1', "'reward'>1", "reward>1 reward<2", "and", "not", '"open', "reward<null",
        'error ~ "(("', 'answer ~ "a(?=b)"', "(" * 200, "not " * 200, "loop or " * 200 + "loop",
        "§", "reward>1;DROP TABLE episodes", "x" * 5_000,
    ],
)  # fmt: skip
def test_nonsense_is_refused_with_a_place_and_a_fix(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        compile_filter(text)
    assert caught.value.status == 400
    assert caught.value.place is not None
    assert caught.value.fix


def test_no_text_of_a_filter_gets_into_the_sql() -> None:
    evil = "x' OR 1=1 --"
    compiled = compile_filter(
        f'answer="{evil}" and tool("{evil}").calls>0 and tag("{evil}")="{evil}" '
        f'and part("{evil}")>1 and error ~ "{evil}" and task in ("{evil}")'
    )
    assert evil not in compiled.sql
    assert compiled.parameters.count(evil) == 7


def test_a_huge_number_is_no_server_error(dashboard: Dashboard) -> None:
    for text in (f"tokens<{'9' * 60}", "reward>1e999", "step=-99999999999999999999", "uid>=1e308"):
        dashboard.get(f"{dashboard.run}/filter", filter=text)


def test_every_field_can_be_sorted_by_and_filtered(dashboard: Dashboard) -> None:
    for field in FIELDS.values():
        value = {"number": ">=0", "text": "!='~'", "flag": ""}[field.type]
        if field.values:
            value = f"={field.values[0]}"
        dashboard.get(f"{dashboard.run}/filter", filter=f"{field.name}{value}")
        for sort in (field.name, f"-{field.name}"):
            first = dashboard.get(f"{dashboard.run}/episodes", sort=sort, limit=10)
            second = dashboard.get(
                f"{dashboard.run}/episodes", sort=sort, limit=500, cursor=first["next"]
            )
            uids = [row["uid"] for row in first["rows"] + second["rows"]]
            assert sorted(uids) == list(range(STORED)), sort


def test_the_language_describes_itself(dashboard: Dashboard) -> None:
    found = dashboard.get("/filter-language")
    for field in found["fields"]:
        if "..." not in field["example"]:
            dashboard.get(f"{dashboard.run}/filter", filter=field["example"])
    for example in EXAMPLES:
        dashboard.get(f"{dashboard.run}/filter", filter=example)
    assert {*FACETS, *HISTOGRAMS} - {*FIELDS} == {"flag", "tool"}
