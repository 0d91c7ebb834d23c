"""Pictures of the pages for README and docs: `python -m tests.dashboard_ui.screenshots RUNS`.

RUNS is a folder with the runs of `make demo`. Writes docs/images/dashboard-*.png, each < 150 kB.
`--all FOLDER` writes every page, light and dark, at 1280 and 390 pixels, to be looked at.
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.dashboard_ui.chromium import browser
from tests.dashboard_ui.sites import OPERATOR, served
from tests.project_tree import ROOT
from tests.waiting import expect_within

IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 150_000
_COLORS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A page, and how it is shown."""

    name: str
    path: str
    dark: bool = False
    width: int = 1280
    height: int = 800


@dataclass(frozen=True, slots=True)
class Shown:
    """What of the runs the pictures show."""

    train: str
    first: str
    second: str
    group: str
    episode: str


def pictures_of(shown: Shown) -> tuple[Picture, ...]:
    """The few pictures that are kept."""
    run = f"/runs/{shown.train}"
    tokens = f"{run}/episode?id={shown.episode}&tab=tokens&overlay=advantage"
    compare = f"/compare?run={shown.first}&run={shown.second}"
    return (
        Picture(name="overview", path=f"{run}/overview"),
        Picture(name="episodes", path=f"{run}/episodes?filter=reward%3C0.5", dark=True),
        Picture(name="group", path=f"{run}/group?id={shown.group}"),
        Picture(name="tokens", path=tokens, dark=True),
        Picture(name="compare", path=compare),
        Picture(
            name="narrow",
            path=f"{run}/episode?id={shown.episode}",
            dark=True,
            width=390,
            height=844,
        ),
    )


def all_pictures(shown: Shown) -> tuple[Picture, ...]:
    """Every page, light and dark, wide and narrow."""
    run = f"/runs/{shown.train}"
    paths = {
        "runs": "/runs",
        "compare": f"/compare?run={shown.first}&run={shown.second}",
        "evaluation": f"/runs/{shown.second}/evaluation",
        "group": f"{run}/group?id={shown.group}",
        "episode": f"{run}/episode?id={shown.episode}",
        "tokens": f"{run}/episode?id={shown.episode}&tab=tokens",
        "search": f"{run}/search?q=error",
    }
    pages = (
        "overview",
        "episodes",
        "groups",
        "tools",
        "ledger",
        "fleet",
        "metrics",
        "logs",
        "config",
    )
    paths |= {page: f"{run}/{page}" for page in pages}
    return tuple(
        Picture(
            name=f"{name}-{'dark' if dark else 'light'}-{width}", path=path, dark=dark, width=width
        )
        for name, path in paths.items()
        for dark in (False, True)
        for width in (1280, 390)
    )


def choose(client: httpx.Client) -> Shown:
    """Return the runs of the demo, and an episode that lost where its siblings won."""
    runs = client.get("/runs").json()["runs"]
    by_name = {run["name"].rpartition("/")[2]: run["id"] for run in runs}
    train = by_name["train"]
    expect_within(300, lambda: client.get(f"/runs/{train}/health").json()["coverage"]["complete"])
    query = {"filter": "state=trained and reward<0.5", "limit": 1}
    row = client.get(f"/runs/{train}/episodes", params=query).json()["rows"][0]
    first, second = by_name["eval-trial-sft-t1"], by_name["eval-trial-sft-grpo-t1"]
    for run in (first, second):
        client.get(f"/runs/{run}/episodes?limit=1")
        expect_within(
            60, lambda run=run: client.get(f"/runs/{run}/health").json()["coverage"]["complete"]
        )
    return Shown(train, first, second, row["group"], row["episode"])


def take(chromium: Browser, url: str, picture: Picture) -> bytes:
    """Return a PNG of few colours."""
    context = chromium.new_context(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme="dark" if picture.dark else "light",
    )
    page: Page = context.new_page()
    page.goto(f"{url}/#token={OPERATOR}")
    page.wait_for_selector("main h1")
    page.goto(url + picture.path)
    page.wait_for_selector("main h1")
    page.locator(".loading").first.wait_for(state="detached")
    page.wait_for_timeout(1500)
    if page.locator(".tokens .k.m5, .tokens .k.p5").count():
        page.locator(".tokens .k.m5, .tokens .k.p5").first.hover()
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    written = io.BytesIO()
    taken.quantize(_COLORS, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    folder: Path = given.all or IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache, served([given.runs], Path(cache)) as url:
        headers = {"authorization": f"Bearer {OPERATOR}"}
        with httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60) as client:
            shown = choose(client)
        with browser() as chromium:
            for picture in (all_pictures if given.all else pictures_of)(shown):
                content = take(chromium, url, picture)
                name = picture.name if given.all else f"dashboard-{picture.name}"
                if len(content) > MOST_BYTES and not given.all:
                    raise SystemExit(f"{name} has {len(content)} bytes, {MOST_BYTES} is the end")
                (folder / f"{name}.png").write_bytes(content)
                print(f"{name}.png: {len(content):,} bytes")


if __name__ == "__main__":
    main()
