"""One dashboard over one of each kind of run, and one Chromium, for all tests of the pages."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from tests.dashboard_ui.chromium import AXE, browser, chromium_path
from tests.dashboard_ui.sites import OPERATOR, Site, served, write_runs
from tests.waiting import expect_within

_REFUSED = ("the server responded with a status of 4",)
"""What Chromium itself writes for an answer that a test asks for, such as of a wrong filter."""
WATCH = """
addEventListener('securitypolicyviolation', (event) => {
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`);
});
"""
_ALL_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
_AXE = """
(rules) => axe.run(document, {resultTypes: ['violations'], runOnly: rules}).then((found) =>
  found.violations.filter((one) => ['serious', 'critical'].includes(one.impact))
    .map((one) => `${one.id}: ${one.nodes[0].html.slice(0, 200)}`))
"""


@dataclass
class Visit:
    """A page of the dashboard, and everything that the browser complained about on it."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def _said(self, message: ConsoleMessage) -> None:
        expected = any(text in message.text for text in _REFUSED)
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(f"{message.type}: {message.text}")

    def sign_in(self, token: str = OPERATOR) -> None:
        self.page.goto(f"{self.url}/#token={token}")
        self.page.wait_for_selector("main h1")

    def open(self, path: str) -> None:
        """Open a path and wait until it has what it asked for."""
        self.page.goto(self.url + path)
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("main h1")
        self.page.locator(".loading").first.wait_for(state="detached")

    @property
    def text(self) -> str:
        return self.page.locator("main").inner_text()

    def faults(self, rules: Sequence[str] = _ALL_RULES) -> list[str]:
        """Return serious violations that axe finds; a test with it is marked `needs_axe`."""
        self.page.evaluate(AXE.read_text())
        return self.page.evaluate(_AXE, list(rules))


Visits = Callable[..., Visit]


# Not for the session: while Playwright is open, an event loop counts as running in this thread, and
# tests of other files that run in the same process could start none.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if chromium_path() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("runs")
    live = write_runs(root)
    try:
        with served([root], tmp_path_factory.mktemp("cache")) as url:
            yield Site(url, live)
    finally:
        live.close()


@pytest.fixture
def visit(chromium: Browser, site: Site) -> Iterator[Visits]:
    """Return a function that opens a window, signed in; it must not complain."""
    made: list[Visit] = []

    def opened(*, token: str = OPERATOR, width: int = 1280, dark: bool = False) -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        context.set_default_timeout(60_000)
        context.add_init_script(WATCH)
        found = Visit(context.new_page(), site.url)
        made.append(found)
        if token:
            found.sign_in(token)
        return found

    yield opened
    complaints = [line for one in made for line in one.complaints]
    for one in made:
        one.page.context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def run_ids(site: Site) -> dict[str, str]:
    """Return name to id of every run, once all that is stored has been read."""
    with httpx.Client(
        base_url=f"{site.url}/api/v1", headers={"authorization": f"Bearer {OPERATOR}"}, timeout=30
    ) as client:
        runs = client.get("/runs").json()["runs"]
        found = {run["name"]: run["id"] for run in runs}

        def read() -> bool:
            answers = [client.get(f"/runs/{run}/health").json() for run in found.values()]
            return all(answer.get("coverage", {}).get("complete") for answer in answers)

        expect_within(60, read)
        return found
