"""Every page in Chromium: it says what it should, breaks no policy, and can be used by everyone."""

import re

import pytest
from playwright.sync_api import expect

from tests.cluster.dashboard.sample_run import write_group
from tests.dashboard_ui.chromium import needs_axe
from tests.dashboard_ui.conftest import Visit, Visits
from tests.dashboard_ui.sites import HOSTILE, VIEWER, Site

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

RUN_PAGES = (
    "overview", "episodes", "groups", "group?id=g000000", "episode?id=g000000-01", "tools",
    "episode?id=g000000-01&tab=tokens", "episode?id=g000000-01&tab=raw", "ledger", "fleet",
    "evaluation", "metrics", "logs", "config", "search?q=a", "health",
    "diff?id=g000000-00&id=g000000-01",
)  # fmt: skip
SAYS = {
    "/runs": ("sample", "grpo", "hostile"),
    "overview": ("Reward", "of the 20 s of the last 2 steps"),
    "episodes": ("26 episodes", "g000000-01", "Outcome"),
    "episodes?filter=loop": ("No episode matches",),
    "groups": ("g000002", "equal: nothing to learn"),
    "group?id=g000002": ("All rewards are equal", "trial", "experience", "execution"),
    "episode?id=g000000-01": ("search", "tool error", "What the scorer saw", "value 1"),
    "episode?id=g000000-01&tab=tokens": ("Advantage", "tokens have a value"),
    "episode?id=g000002-00&tab=tokens&overlay=advantage": ("Advantage is empty.", "zero_variance"),
    "episode?id=g000000-01&tab=raw": ('"episode": "g000000-01"',),
    "diff?id=g000000-00&id=g000000-01": ("They part at turn", "Parts of the reward"),
    "tools": ("search", "convert", "slow"),
    "tools?tool=slow&status=timeout": ("Calls of slow", "timed out after 5 s"),
    "ledger": ("zero variance", "infra failed", "leased again"),
    "fleet": ("worker-0", "Audit", "ann"),
    "metrics": ("success", "reward"),
    "metrics?match=(": ("Unterminated group",),
    "logs": ("error: a worker failed",),
    "config": ("trial_sessions",),
    "search?q=found": ("hits", "found"),
    "health": ("Problems",),
    "nothing": ("There is no page",),
}
"""What a page of the run `sample` says."""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_every_page_says_what_it_should_without_a_complaint(
    visit: Visits, run_ids: dict[str, str]
) -> None:
    found = visit()
    for path, words in SAYS.items():
        found.open(path if path.startswith("/") else f"/runs/{run_ids['sample']}/{path}")
        for word in words:
            found.page.get_by_text(word).first.wait_for(state="attached")


@needs_axe
def test_axe_finds_no_serious_violation_in_light_or_dark(
    visit: Visits, run_ids: dict[str, str]
) -> None:
    found = visit()
    sides = f"run={run_ids['sft']}&run={run_ids['grpo']}"
    more = (f"/runs/{run_ids['grpo']}/evaluation?by=depth", f"/compare?{sides}")
    for path in (*SAYS, *more):
        found.page.emulate_media(color_scheme="light")
        found.open(path if path.startswith("/") else f"/runs/{run_ids['sample']}/{path}")
        light = found.page.evaluate(BACKGROUND)
        assert found.faults() == [], path
        found.page.emulate_media(color_scheme="dark")
        assert found.page.evaluate(BACKGROUND) != light
        assert found.faults(rules=("color-contrast",)) == [], f"{path}, dark"


def test_evaluations_and_studies_lead_to_their_episodes(
    visit: Visits, run_ids: dict[str, str], site: Site
) -> None:
    found = visit()
    found.open(f"/runs/{run_ids['grpo']}/evaluation?by=depth")
    found.page.get_by_role("heading", name="By depth").wait_for()
    assert "pass@1" in found.text
    found.open(f"/compare?run={run_ids['sft']}&run={run_ids['grpo']}")
    found.page.get_by_role("heading", name="Paired differences").wait_for()
    found.page.get_by_role("link", name="both").first.click()
    found.page.get_by_role("heading", name="Two episodes").wait_for()
    found.page.locator(".sides .turn").nth(5).wait_for()
    found.open("/runs")
    found.page.get_by_role("link", name=re.compile("^Study ")).click()
    found.page.get_by_role("link", name="50%").click()
    found.page.get_by_text("6 episodes", exact=True).wait_for()


def test_narrow_pages_can_be_read(visit: Visits, run_ids: dict[str, str]) -> None:
    narrow = visit(width=390)
    for path in RUN_PAGES:
        narrow.open(f"/runs/{run_ids['sample']}/{path}")
        wide = narrow.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, path
    before = narrow.page.evaluate(BACKGROUND)
    narrow.page.get_by_role("button", name="Use dark colours").click()
    assert narrow.page.evaluate(BACKGROUND) != before
    narrow.page.reload()
    narrow.settle()
    assert narrow.page.evaluate(BACKGROUND) != before


def test_hostile_texts_stay_texts_on_every_page(visit: Visits, run_ids: dict[str, str]) -> None:
    found = visit()
    for path in ("/runs", *(f"/runs/{run_ids['hostile']}/{page}" for page in RUN_PAGES)):
        found.open(path)
        _inert(found, path)
    for number in range(len(HOSTILE)):
        found.open(f"/runs/{run_ids['hostile']}/episode?id=g{number:06d}-00")
        _inert(found, str(number))
    for number, mark in ((4, "ESC"), (5, "RLO"), (6, "NUL"), (6, "ZWSP")):
        found.open(f"/runs/{run_ids['hostile']}/episode?id=g{number:06d}-00")
        assert found.page.locator(".ctl", has_text=mark).count() > 0, mark


def _inert(found: Visit, where: str) -> None:
    assert found.page.evaluate("window.hit === undefined"), where
    foreign = (
        "[...document.querySelectorAll('script, svg, img, iframe, object, animate, a[href]')]"
        ".filter((node) => !/^(\\/|\\?|#|https?:\\/\\/127)/"
        ".test(node.getAttribute('src') ?? node.getAttribute('href') ?? '')).length"
    )
    assert found.page.evaluate(foreign) == 0, where


def test_the_rest_of_a_long_text_is_read_on_demand(visit: Visits, run_ids: dict[str, str]) -> None:
    found = visit()
    found.open(f"/runs/{run_ids['hostile']}/episode?id=g000010-00")
    turn = found.page.locator("#turn-0 .body > pre").first
    assert len(turn.inner_text()) == 20_000
    found.page.locator("#turn-0").get_by_role("button", name="Read more").first.click()
    found.page.get_by_text("220,000 of 300,000").first.wait_for()
    assert len(turn.inner_text()) == 220_000


def test_keys_lead_through_episodes(visit: Visits, run_ids: dict[str, str]) -> None:
    found = visit()
    page = found.page
    found.open(f"/runs/{run_ids['sample']}/overview")
    page.keyboard.press("g")
    page.keyboard.press("e")
    page.locator("tbody tr").first.wait_for()
    page.keyboard.press("j")
    page.keyboard.press("j")
    second = page.locator("tbody tr.at a").first.inner_text()
    assert second == page.locator("tbody tr:not(.space)").nth(1).locator("a").first.inner_text()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=f"Episode {second}").wait_for()
    page.keyboard.press("t")
    page.locator(".tokens .k").first.wait_for()
    page.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("token 1", exact=True).wait_for()
    page.keyboard.press("?")
    page.get_by_role("dialog").get_by_text("Next sibling").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    page.keyboard.press("G")
    page.get_by_role("heading", name="Group").wait_for()


def test_a_filter_is_corrected_counted_and_kept_in_the_address(
    visit: Visits, run_ids: dict[str, str]
) -> None:
    found = visit()
    page = found.page
    found.open(f"/runs/{run_ids['sample']}/episodes")
    page.keyboard.press("/")
    page.keyboard.type("rewrd<0.2")
    page.locator(".wrong").get_by_role("button", name="reward").click()
    page.get_by_text("episodes match").wait_for()
    assert "filter=reward%3C0.2" in page.url
    page.locator(".facets").get_by_role("button", name="trained").click()
    page.wait_for_url("**state%3Dtrained**")
    with page.expect_response(lambda answer: "sort=-tokens" in answer.url) as answered:
        page.get_by_role("button", name="Tokens").first.click()
    shown, rows = page.locator("tbody tr:not(.space)"), answered.value.json()["rows"]
    page.wait_for_url("**sort=-tokens**")
    expect(shown).to_have_count(len(rows))
    page.reload()
    expect(shown).to_have_count(len(rows))
    page.go_back()
    page.wait_for_url(lambda url: "sort" not in url)
    page.keyboard.press("/")
    page.keyboard.press("Control+a")
    page.keyboard.type("trial_c")
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert page.get_by_role("combobox", name="Filter").input_value() == "trial_calls"


def test_new_episodes_are_offered_and_move_no_row(
    visit: Visits, run_ids: dict[str, str], site: Site
) -> None:
    found = visit()
    page = found.page
    found.open(f"/runs/{run_ids['live']}/episodes")
    page.locator("tbody tr").first.wait_for()
    page.locator(".top .live.on").wait_for()
    before = page.locator("tbody tr a").first.inner_text()
    write_group(site.live, 40)
    page.get_by_text("4 new episodes since this list was read").wait_for()
    assert page.locator("tbody tr a").first.inner_text() == before
    page.get_by_role("button", name="Show", exact=True).click()
    page.get_by_role("link", name="g000040-03").wait_for()


def test_a_viewer_steers_nothing_and_a_wrong_token_opens_nothing(
    visit: Visits, run_ids: dict[str, str]
) -> None:
    operator = visit()
    operator.open(f"/runs/{run_ids['live']}/fleet")
    operator.page.get_by_role("button", name="Stop …").click()
    operator.page.get_by_text("finished work is kept").wait_for()
    operator.page.get_by_role("button", name="Leave it").click()
    how = ((False, r"of \d workers end their episodes"), (True, r"of \d workers stop at once"))
    for switched, said in how:
        operator.page.get_by_label("surplus workers stop at once").set_checked(switched)
        operator.page.locator("form.bar button").nth(2).click()
        operator.page.get_by_text(re.compile(said)).wait_for()
    for name, said in (("Pause", "No episode and no group starts"), ("Checkpoint", "else when")):
        operator.page.get_by_role("button", name=f"{name} …").click()
        operator.page.get_by_text(said).wait_for()
    assert "token" not in operator.page.url
    viewer = visit(token=VIEWER)
    viewer.open(f"/runs/{run_ids['live']}/fleet")
    viewer.page.get_by_role("heading", name="Audit").wait_for()
    assert viewer.page.get_by_role("button", name="Stop …").count() == 0
    viewer.open(f"/runs/{run_ids['sample']}/episodes")
    viewer.page.get_by_role("button", name="Export").click()
    assert viewer.page.get_by_role("link", name="Rows, JSONL").is_visible()
    assert viewer.page.get_by_text("Make an SFT set").count() == 0
    unknown = visit(token="")
    unknown.page.goto(f"{unknown.url}/runs#token=not-the-token-of-this-one")
    unknown.page.get_by_label("Token").wait_for()
    assert "token" not in unknown.page.url
