"""How long a browser needs for an episode's tokens.

`python -m tests.benchmarks.bench_dashboard_pages` stores an episode of 30,000 tokens, opens its
overlay in Chromium, and says how long it took from the click until the tokens were painted, and how
long another overlay took.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from rollout.store.run_directory import RunDirectory
from rollout.store.run_layout import RunInfo, RunKind
from tests.cluster.dashboard.sample_run import CONFIG
from tests.dashboard_ui.chromium import browser
from tests.dashboard_ui.sites import OPERATOR, long_episode, served

# Two frames after the last change, everything has been painted.
_PAINTED = """
async ([label, tokens]) => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const link = [...document.querySelectorAll('.tabs a, .choice button')]
    .find((node) => node.textContent === label);
  const start = performance.now();
  link.click();
  while (document.querySelectorAll('.tokens .k').length < tokens) await frame();
  await frame();
  await frame();
  return performance.now() - start;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        info = RunInfo(
            run="long", kind=RunKind.TRAIN, seed=1, created_at=1.7e9, command="benchmark"
        )
        with RunDirectory.create(root / "runs" / "long", CONFIG, info) as run:
            episode = long_episode(run, 0, given.tokens)
        first, other = [], []
        with served([root / "runs"], root / "cache") as url, browser() as chromium:
            page = chromium.new_page()
            page.goto(f"{url}/#token={OPERATOR}")
            page.get_by_role("link", name="long").click()
            page.wait_for_selector("nav.side a")
            base = page.url.rpartition("/")[0]
            for _ in range(given.times):
                page.goto(f"{base}/episode?id={episode}")
                page.wait_for_selector(".turn")
                first.append(page.evaluate(_PAINTED, ["Tokens", given.tokens]))
                other.append(page.evaluate(_PAINTED, ["Policy version", given.tokens]))
    print(f"{given.tokens:,} tokens, median of {given.times}")
    print(f"from the click to painted tokens: {statistics.median(first):.0f} ms")
    print(f"another overlay: {statistics.median(other):.0f} ms")


if __name__ == "__main__":
    main()
