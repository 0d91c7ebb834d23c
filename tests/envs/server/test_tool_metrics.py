"""What `/metrics` says after known traffic."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from envs.server.metrics import ToolMetrics
from envs.server.wire import EncodedCall, Health, OpenItem
from envs.tools import AnswerStatus, ToolAnswer, ToolSet, ToolSpec
from tests.envs.server.tool_serving import CONFIG, TOKEN, TOOLS, serving

HEALTH = Health(
    status="healthy",
    isolation="",
    sessions=2,
    max_sessions=9,
    idle_children=1,
    tool_sets=1,
    calls_throttled=5,
    opens_refused=3,
    calls_refused=4,
    zygote_restarts=1,
)


def tool_set(*names: str) -> ToolSet:
    tools = tuple(ToolSpec(name=name, description="", parameters={}) for name in names)
    return ToolSet(tools=tools, sources=("",) * len(names), functions=names)


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return values by name and label values."""
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def call(metrics: ToolMetrics, name: str, status: AnswerStatus, seconds: float) -> None:
    answer = ToolAnswer(status=status, text="", seconds=seconds)
    metrics.answered("s", EncodedCall(name=name, arguments="{}"), answer)


def test_calls_by_tool_and_status() -> None:
    metrics = ToolMetrics()
    opened = tool_set("add", "mul")
    metrics.opened("s", OpenItem(digest=opened.digest, seed=1, purpose="trial"), opened)
    call(metrics, "add", AnswerStatus.OK, 0.002)
    call(metrics, "add", AnswerStatus.OK, 0.2)
    call(metrics, "mul", AnswerStatus.TIMEOUT, 5)
    call(metrics, "made up by a policy", AnswerStatus.TOOL_ERROR, 0)
    metrics.closed("s")
    found = samples(metrics.render(HEALTH).decode())
    assert found["trialrun_tool_calls_total", "ok", "add"] == 2
    assert found["trialrun_tool_calls_total", "timeout", "mul"] == 1
    assert found["trialrun_tool_calls_total", "tool_error", "other"] == 1
    assert found["trialrun_tool_call_seconds_sum", "add"] == pytest.approx(0.202)
    assert found["trialrun_tool_call_seconds_bucket", "0.0025", "add"] == 1
    assert found["trialrun_tool_call_seconds_bucket", "0.25", "add"] == 2
    assert found[("trialrun_tool_sessions_opened_total",)] == 1
    assert found[("trialrun_tool_sessions_closed_total",)] == 1


def test_server_state() -> None:
    found = samples(ToolMetrics().render(HEALTH).decode())
    assert found[("trialrun_tool_server_up",)] == 1
    assert found[("trialrun_tool_server_sessions",)] == 2
    assert found[("trialrun_tool_server_calls_throttled",)] == 5
    assert found["trialrun_tool_server_refusals_total", "open"] == 3
    assert found["trialrun_tool_server_refusals_total", "call"] == 4
    assert found[("trialrun_tool_server_zygote_restarts_total",)] == 1


def test_labels_are_bounded() -> None:
    metrics = ToolMetrics(max_tools=2)
    names = [f"tool{number}" for number in range(50)]
    opened = tool_set(*names)
    metrics.opened("s", OpenItem(digest=opened.digest, seed=1, purpose="trial"), opened)
    for name in names:
        call(metrics, name, AnswerStatus.OK, 0.01)
    found = samples(metrics.render(HEALTH).decode())
    counts = {key[-1]: value for key, value in found.items() if key[0].endswith("calls_total")}
    assert counts == {"tool0": 1, "tool1": 1, "other": 48}


async def test_route_tells_what_ran() -> None:
    async with serving() as served:
        served.host.add_tool_sets({TOOLS.digest: TOOLS})
        await served.host.open_session(OpenItem(digest=TOOLS.digest, seed=1, purpose="trial"))
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=served.address, headers=headers) as http:
            response = await http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples(response.text)
        assert found[("trialrun_tool_server_sessions",)] == 1
        assert found[("trialrun_tool_server_max_sessions",)] == CONFIG.max_sessions
