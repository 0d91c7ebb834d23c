"""Schemathesis, from the OpenAPI document of a live dashboard: no 5xx, and answers as stated."""

import subprocess
from pathlib import Path

import pytest

from tests.cluster.dashboard.process import DashboardProcess
from tests.cluster.dashboard.sample_run import write_sample_run

pytestmark = [pytest.mark.real, pytest.mark.long]
EXCLUDED = ",".join(
    (
        # No schema can say which filters, cursors, ids and regular expressions are right.
        "positive_data_acceptance",
        # A cookie alone is refused for POST: an Origin belongs to it.
        "ignored_auth",
        # Query strings with unknown names are ignored, as browsers add some.
        "negative_data_rejection",
    )
)
EXAMPLES = 12
PARAMETERS = """
[parameters]
"path.run" = "{run}"

[[operations]]
include-path-regex = "/runs/.run./(episode|episode/text|episode/tokens)$"
parameters = {{ "query.id" = "g000000-01" }}

[[operations]]
include-path = "/api/v1/runs/{{run}}/group"
parameters = {{ "query.id" = "g000001" }}
"""
"""Names of what is there, so that most requests get beyond a 404."""


@pytest.mark.timeout(600)
def test_no_answer_is_a_server_error(interop_bin: Path, tmp_path: Path) -> None:
    write_sample_run(tmp_path / "runs" / "sample")
    served = DashboardProcess(str(tmp_path / "runs"), "--cache", str(tmp_path / "cache"))
    served.get("/openapi.json")  # made once, which takes longer than schemathesis waits
    run = served.get("/runs")["runs"][0]["id"]
    (tmp_path / "schemathesis.toml").write_text(PARAMETERS.format(run=run))
    try:
        done = subprocess.run(
            [
                *(str(interop_bin / "schemathesis"), "run", f"{served.base}/api/v1/openapi.json"),
                *("--header", f"authorization: Bearer {served.token}", "--seed", "1"),
                *("--no-color", "--max-examples", str(EXAMPLES), "--exclude-checks", EXCLUDED),
                *("--phases", "examples,coverage,fuzzing", "--exclude-path", "/api/v1/live"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert done.returncode == 0, done.stdout[-8_000:]
        assert "Tested: 3" in done.stdout
        assert served.process.poll() is None
    finally:
        code, errors = served.stop()
    # The server says that requests which are no HTTP were received; it must say nothing else.
    said = {line for line in errors.splitlines() if "Invalid HTTP request" not in line}
    assert (code, said) == (0, set())
