"""The snapshot that `trialrun dashboard bundle` writes: opened from a file, without any network."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from cluster.dashboard.bundle.write import Bundle, write_bundle
from envs.errors import ConfigError, MissingError
from envs.tools import JsonObject
from tests.cluster.dashboard.sample_run import write_sample_run
from tests.dashboard_ui.chromium import needs_axe
from tests.dashboard_ui.conftest import WATCH, Visit
from tests.dashboard_ui.sites import HOSTILE, write_hostile

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

PAGES = (
    "overview",
    "episodes",
    "groups",
    "tools",
    "ledger",
    "fleet",
    "metrics",
    "config",
    "health",
)


def bundled(wanted: Bundle, environ: dict[str, str]) -> JsonObject:
    """Write a snapshot in a thread: in that of Playwright an event loop counts as running."""
    with ThreadPoolExecutor(1) as one:
        return one.submit(write_bundle, wanted, environ).result()


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "sample"
    write_sample_run(path)
    return path


class Snapshot(Visit):
    """A page of a snapshot: its address stands behind `#`."""

    def open(self, path: str) -> None:
        self.page.goto(f"{self.url}#{path}")
        self.settle()

    @property
    def run(self) -> str:
        link = self.page.locator("td a").first.get_attribute("href") or ""
        return link.removeprefix("/runs/").partition("/")[0]


@pytest.fixture
def offline(chromium: Browser) -> Iterator[Callable[..., Snapshot]]:
    """Return a function that opens a file in a window without network; it must not complain."""
    made: list[Snapshot] = []

    def opened(file: Path, *, width: int = 1280, dark: bool = False) -> Snapshot:
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=True,
        )
        context.set_default_timeout(60_000)
        context.add_init_script(WATCH)
        found = Snapshot(context.new_page(), file.as_uri())
        made.append(found)
        found.open("/runs")
        return found

    yield opened
    complaints = [line for one in made for line in one.complaints]
    for one in made:
        one.page.context.close()
    assert complaints == []


def test_a_snapshot_shows_its_episodes_from_a_file(
    sample: Path, tmp_path: Path, environ: dict[str, str], offline: Callable[..., Snapshot]
) -> None:
    target = tmp_path / "few.html"
    wanted = Bundle(path=sample, target=target, filter_text="reward>0 and step=1")
    found = bundled(wanted, environ)
    assert found["bytes"] == target.stat().st_size and int(str(found["episodes"])) > 1
    seen = offline(target)
    run = seen.run
    assert f": {found['episodes']} of " in seen.page.locator(".made").inner_text()
    for page in PAGES:
        seen.open(f"/runs/{run}/{page}")
        assert seen.page.locator("[role=alert]").count() == 0, page
    seen.open(f"/runs/{run}/episodes")
    assert f"{found['episodes']} episodes" in seen.text
    seen.page.get_by_role("columnheader", name="Reward").click()
    seen.page.wait_for_url(re.compile("sort="))
    seen.page.locator("a[href*='/episode?']").first.click()
    seen.page.get_by_text("What the scorer saw").wait_for()
    seen.page.get_by_role("link", name="Tokens").click()
    seen.page.get_by_text("tokens have a value").wait_for()
    seen.page.go_back()
    seen.page.locator(".outline a").nth(1).click()
    assert "turn=1" in seen.page.url
    seen.page.get_by_role("link", name=re.compile("^Diff with")).click()
    seen.page.get_by_role("heading", name="Diff of 2 episodes").wait_for()
    seen.open(f"/runs/{run}/episodes?filter=outcome%3Danswered%20and%20reward%3E0")
    assert f"{found['episodes']} episodes match" in seen.text
    seen.page.goto(f"{seen.url}#/runs/{run}/episode?id=g999999-00")
    seen.page.get_by_text("This snapshot does not hold it").wait_for()
    assert "g000000-00" not in target.read_text(), "texts of episodes stand in the page as such"


def test_hostile_texts_are_inert_in_a_snapshot(
    tmp_path: Path, environ: dict[str, str], offline: Callable[..., Snapshot]
) -> None:
    write_hostile(tmp_path / "hostile")
    target = tmp_path / "hostile.html"
    bundled(Bundle(path=tmp_path / "hostile", target=target), environ)
    for text in HOSTILE[:4]:
        assert text not in target.read_text()
    seen = offline(target)
    run = seen.run
    for page in PAGES:
        seen.open(f"/runs/{run}/{page}")
    for number in range(len(HOSTILE)):
        for tab in ("", "&tab=tokens", "&tab=raw"):
            seen.open(f"/runs/{run}/episode?id=g{number:06d}-00{tab}")
            assert seen.page.evaluate("window.hit") is None
            assert seen.page.evaluate("document.querySelectorAll('script, svg').length") == 3
        assert not re.search("[\x00-\x08\x1b\u202e\u200b]", seen.text)


@needs_axe
def test_a_snapshot_is_as_accessible_and_fits_a_telephone(
    sample: Path, tmp_path: Path, environ: dict[str, str], offline: Callable[..., Snapshot]
) -> None:
    target = tmp_path / "all.html"
    bundled(Bundle(path=sample, target=target), environ)
    for dark in (False, True):
        seen = offline(target, width=390, dark=dark)
        run = seen.run
        for page in ("overview", "episodes", "group?id=g000000", "episode?id=g000000-01"):
            seen.open(f"/runs/{run}/{page}")
            assert seen.faults() == [], page
            wide = seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, page


def test_a_folder_has_the_table_too(sample: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    target = tmp_path / "snapshot"
    found = bundled(Bundle(path=sample, target=target, filter_text="reward>0"), environ)
    assert sorted(file.name for file in target.iterdir()) == ["episodes.parquet", "index.html"]
    assert pq.read_table(target / "episodes.parquet").num_rows == found["episodes"]
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"filter_text": "rewrd>0"}, ConfigError, "no field 'rewrd': did you mean reward"),
        ({"filter_text": "reward>99"}, ConfigError, "expected a filter that episodes match"),
        ({"target": Path("/")}, ConfigError, "exists"),
        ({"target": Path("no/where/x.html")}, MissingError, "expected the folder"),
    ],
)
def test_what_cannot_be_written_is_refused(
    sample: Path,
    tmp_path: Path,
    environ: dict[str, str],
    changed: dict[str, object],
    error: type[Exception],
    said: str,
) -> None:
    values: dict[str, object] = {"path": sample, "target": tmp_path / "x.html", **changed}
    with pytest.raises(error, match=said):
        bundled(Bundle(**values), environ)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
