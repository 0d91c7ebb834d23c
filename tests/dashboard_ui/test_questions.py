"""Ten questions of docs/dashboard.md, each answered in at most three clicks or one filter."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page

from tests.dashboard_ui.conftest import Visits

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


class Reader:
    """Someone with a question, who clicks at most three times."""

    def __init__(self, page: Page, run: str) -> None:
        self.page = page
        self.run = run
        self.clicks = 0

    def click(self, target: Locator) -> None:
        self.clicks += 1
        assert self.clicks <= 3, "a fourth click"
        target.first.click()

    def link(self, name: str) -> None:
        self.click(self.page.get_by_role("link", name=name))

    def button(self, name: str) -> None:
        self.click(self.page.get_by_role("button", name=name))

    def reads(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()


def why_did_success_fall_at_a_step(reader: Reader) -> None:
    chart = reader.page.locator(".chart", has_text="Success").first.locator(".u-over")
    chart.wait_for()
    reader.clicks += 1
    box = chart.bounding_box()
    assert box is not None
    chart.click(position={"x": box["width"] - 4, "y": box["height"] / 2})
    reader.page.wait_for_url("**filter=step%3D2**sort=reward**")
    reader.reads("4 episodes match")


def which_tool_times_out(reader: Reader) -> None:
    reader.link("Tools")
    reader.button("Timeouts")
    reader.page.wait_for_url("**sort=timeout_rate**")
    reader.page.locator("tbody tr:first-child", has_text="slow").wait_for()
    reader.link("slow")
    reader.reads("timed out after 5 s")


def which_questions_were_won(reader: Reader) -> None:
    reader.page.goto(reader.page.url.partition("/runs")[0] + "/runs")
    reader.click(reader.page.get_by_label("Tick sft"))
    reader.click(reader.page.get_by_label("Tick grpo"))
    reader.button("Compare evaluations")
    reader.reads("Questions that flipped")
    reader.page.locator("td .badge", has_text="won").first.wait_for()


def are_trials_made_or_skipped(reader: Reader) -> None:
    reader.link("Episodes")
    reader.button("Views")
    reader.link("No trial made")
    reader.reads("2 episodes match")


def was_this_group_dropped_and_why(reader: Reader) -> None:
    reader.link("Ledger")
    reader.button("zero variance")
    reader.reads("all rewards of its group are equal")
    reader.link("g000002")
    reader.reads("All rewards are equal.")


def which_tokens_got_the_credit(reader: Reader) -> None:
    reader.link("Episodes")
    reader.link("g000003-01")
    reader.link("Tokens")
    reader.page.locator(".tokens .k.p5").first.wait_for()


def where_do_best_and_worst_part(reader: Reader) -> None:
    reader.link("Groups")
    reader.link("g000000")
    reader.button("Diff best and worst")
    reader.reads("They part at turn 1")


def which_worker_lags_behind(reader: Reader) -> None:
    reader.link("Fleet")
    reader.button("Version lag")
    reader.reads("Largest lag")


def what_did_the_scorer_see(reader: Reader) -> None:
    reader.link("Episodes")
    reader.link("g000000-01")
    reader.reads("What the scorer saw")
    reader.reads("not correct")


def what_failed_and_with_which_error(reader: Reader) -> None:
    reader.link("infra failed")
    reader.reads("ToolServerError: connection refused")


QUESTIONS: tuple[Callable[[Reader], None], ...] = (
    why_did_success_fall_at_a_step,
    which_tool_times_out,
    which_questions_were_won,
    are_trials_made_or_skipped,
    was_this_group_dropped_and_why,
    which_tokens_got_the_credit,
    where_do_best_and_worst_part,
    which_worker_lags_behind,
    what_did_the_scorer_see,
    what_failed_and_with_which_error,
)


def test_ten_questions_are_answered_in_three_clicks(visit: Visits, run_ids: dict[str, str]) -> None:
    assert len(QUESTIONS) == 10
    found = visit()
    for question in QUESTIONS:
        found.open(f"/runs/{run_ids['sample']}/overview")
        question(Reader(found.page, run_ids["sample"]))
