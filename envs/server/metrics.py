"""The tool server's metrics in Prometheus' text format."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from envs.server.traffic import TrafficRecorder
from envs.server.wire import EncodedCall, Health, OpenItem
from envs.tools import ToolAnswer, ToolSet

OTHER = "other"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ToolMetrics:
    """A SessionObserver that counts and times calls by tool.

    The first `max_tools` tool names that sessions are opened with get their own label, which bounds
    the number of labels. All other tools share the label `other`; so do calls of tools that a
    session does not have.
    """

    def __init__(self, max_tools: int = 256) -> None:
        self._max_tools = max_tools
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "trialrun_tool_calls",
            "Calls by tool and by status of the answer.",
            ["tool", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "trialrun_tool_call_seconds",
            "Wall seconds of calls inside the sandbox.",
            ["tool"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._opened = Counter(
            "trialrun_tool_sessions_opened", "Sessions opened.", registry=self._registry
        )
        self._closed = Counter(
            "trialrun_tool_sessions_closed", "Sessions closed.", registry=self._registry
        )
        self._state = _State()
        self._registry.register(self._state)
        self._tools: dict[str, Histogram] = {}
        self._other = self._seconds.labels(OTHER)
        self._counters: dict[tuple[str, str], Counter] = {}

    def watch(self, recorder: TrafficRecorder) -> None:
        """Include the state of the traffic recording."""
        self._state.recorder = recorder

    def opened(self, session_id: str, item: OpenItem, tool_set: ToolSet) -> None:
        """Count a session, and assign labels to its tools."""
        self._opened.inc()
        for tool in tool_set.tools:
            if tool.name not in self._tools and len(self._tools) < self._max_tools:
                self._tools[tool.name] = self._seconds.labels(tool.name)

    def answered(self, session_id: str, call: EncodedCall, answer: ToolAnswer) -> None:
        """Count and time a call."""
        seconds = self._tools.get(call.name)
        name = OTHER if seconds is None else call.name
        (seconds or self._other).observe(answer.seconds)
        key = (name, answer.status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._calls.labels(name, answer.status.value)
        counter.inc()

    def closed(self, session_id: str) -> None:
        """Count the end of a session."""
        self._closed.inc()

    def render(self, health: Health) -> bytes:
        """Return the metrics; the server's state is taken from `health`."""
        self._state.health = health
        return generate_latest(self._registry)


class _State(Collector):
    """Metrics that are read from the host's health and from the recorder."""

    def __init__(self) -> None:
        self.health: Health | None = None
        self.recorder: TrafficRecorder | None = None

    def collect(self) -> Iterable[Metric]:
        health = self.health
        if health is None:
            return
        for name, words, value in (
            ("up", "Whether a sandbox can be started.", health.status == "healthy"),
            ("sessions", "Open sessions.", health.sessions),
            ("max_sessions", "Sessions that may be open at once.", health.max_sessions),
            ("idle_children", "Processes ready to become sessions.", health.idle_children),
            ("tool_sets", "Tool sets that can be opened by digest.", health.tool_sets),
            ("opens_waiting", "Sessions being opened or waiting to be.", health.opens_waiting),
            ("calls_running", "Calls running.", health.calls_running),
            (
                "calls_throttled",
                "CPU-bound calls that are throttled in favour of short ones.",
                health.calls_throttled,
            ),
        ):
            yield GaugeMetricFamily(f"trialrun_tool_server_{name}", words, float(value))
        refusals = CounterMetricFamily(
            "trialrun_tool_server_refusals",
            "Requests refused because the server is full.",
            labels=["what"],
        )
        refusals.add_metric(["open"], health.opens_refused)
        refusals.add_metric(["call"], health.calls_refused)
        yield refusals
        yield CounterMetricFamily(
            "trialrun_tool_server_zygote_restarts",
            "Fork servers that had to be replaced.",
            health.zygote_restarts,
        )
        if self.recorder is not None:
            yield CounterMetricFamily(
                "trialrun_tool_traffic_lost_events",
                "Sessions and calls that could not be recorded.",
                self.recorder.lost_events,
            )
