"""What must hold after a chaos run, checked from its files by code that shares none with the store.

The ledger is read as JSON lines and replayed here; nothing of `rollout/store` is used.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_LEGITIMATE = {"zero_variance", "stale", "surplus", "cancelled"}
"""Why a group may end untrained: the algorithm leaves it out, or no step is left to take it."""


def objects(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a journal."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@dataclass(slots=True)
class Replayed:
    """The life of every group, from the events of the ledger."""

    groups_per_step: int
    stride: int = 0
    """Group numbers that are set aside for a round of a deterministic run; 0 in other runs."""
    numbers: list[int] = field(default_factory=list)
    group_of: dict[str, str] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    attempt: dict[str, int] = field(default_factory=dict)
    reason: dict[str, str] = field(default_factory=dict)
    steps_of: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Every step that ever trained a group, rolled back or not."""
    step_of: dict[str, int] = field(default_factory=dict)
    left_out_at: dict[str, int] = field(default_factory=dict)
    ever_finished: set[str] = field(default_factory=set)
    rollbacks: int = 0
    faults: list[str] = field(default_factory=list)

    def read(self, events: Iterable[dict[str, Any]]) -> "Replayed":
        for event in events:
            getattr(self, f"_{event['event']}")(event)
        return self

    def _leased(self, event: dict[str, Any]) -> None:
        group = event["group"]
        if group in self.members:
            self.faults.append(f"{group} was scheduled twice")
        self.numbers.append(event["group_number"])
        self.members[group] = [sample["episode"] for sample in event["samples"]]
        for sample in event["samples"]:
            self.group_of[sample["episode"]] = group
            self.state[sample["episode"]] = "leased"
            self.attempt[sample["episode"]] = sample["attempt"]

    def _re_leased(self, event: dict[str, Any]) -> None:
        episode = event["episode"]
        if event["attempt"] <= self.attempt[episode]:
            self.faults.append(f"{episode}: attempt {event['attempt']} again")
        if self.state[episode] == "finished" and self._is_finished(self.group_of[episode]):
            self.faults.append(f"{episode}: finished, and run again: {event['why']}")
        self.attempt[episode] = event["attempt"]
        self.state[episode] = "leased"

    def _finished(self, event: dict[str, Any]) -> None:
        episode = event["episode"]
        if self.state[episode] != "leased" or event["attempt"] != self.attempt[episode]:
            self.faults.append(f"{episode}: a result of another attempt counts")
        self.state[episode] = "finished"
        if self._is_finished(self.group_of[episode]):
            self.ever_finished.add(self.group_of[episode])

    def _is_finished(self, group: str) -> bool:
        return all(self.state[episode] == "finished" for episode in self.members[group])

    def _trained(self, event: dict[str, Any]) -> None:
        for episode in event["episodes"]:
            if self.state[episode] != "finished":
                self.faults.append(
                    f"{episode}: trained at {event['step']} as {self.state[episode]}"
                )
            self.state[episode] = "trained"
            self.step_of[episode] = event["step"]
            self.steps_of[self.group_of[episode]].add(event["step"])

    def _dropped(self, event: dict[str, Any]) -> None:
        for episode in event["episodes"]:
            if self.state[episode] not in ("leased", "finished"):
                self.faults.append(f"{episode}: dropped as {self.state[episode]}")
            self.state[episode] = "dropped"
            self.reason[episode] = event["reason"]
            if event.get("step") is not None:
                self.left_out_at[episode] = event["step"]

    def _rolled_back(self, event: dict[str, Any]) -> None:
        self.rollbacks += 1
        for step_of, was in ((self.step_of, "trained"), (self.left_out_at, "dropped")):
            for episode in [e for e, step in step_of.items() if step > event["step"]]:
                assert self.state[episode] == was, (episode, self.state[episode])
                self.state[episode] = "finished"
                del step_of[episode]

    # At the end

    def violations(self, steps: int, *, ended: bool = True) -> list[str]:
        """Return what is wrong after a run of `steps` steps; one that has not `ended`, because it
        was stopped, may hold groups for the steps to come.
        """
        found = list(self.faults)
        ranges: dict[int, list[int]] = defaultdict(list)
        for number in sorted(self.numbers):
            ranges[number // self.stride if self.stride else 0].append(number)
        for first, numbers in ranges.items():
            start = first * self.stride
            if numbers != list(range(start, start + len(numbers))):
                found.append(f"group numbers were skipped or repeated: {numbers}")
        found += [
            f"{group} was trained at several steps: {sorted(at)}"
            for group, at in self.steps_of.items()
            if len(at) > 1
        ]
        taken: dict[int, set[str]] = defaultdict(set)
        for episode, step in [*self.step_of.items(), *self.left_out_at.items()]:
            taken[step].add(self.group_of[episode])
        taken_steps = taken.keys() if ended else range(1, steps + 1)
        sizes = {step: len(taken[step]) for step in taken_steps}
        if sizes != dict.fromkeys(range(1, steps + 1), self.groups_per_step):
            found.append(f"groups by step: {sizes}")
        for group, episodes in self.members.items():
            found += self._end_of(group, episodes, ended=ended)
        return found

    def _end_of(self, group: str, episodes: list[str], *, ended: bool) -> list[str]:
        found = []
        states = {self.state[episode] for episode in episodes}
        if ended and states & {"leased", "finished"}:
            found.append(f"{group} did not end: {states}")
        reasons = {self.reason[e] for e in episodes if self.state[e] == "dropped"}
        odd = {
            self.reason[e]
            for e in episodes
            if self.state[e] == "dropped" and e not in self.left_out_at
        } - _LEGITIMATE
        if odd:
            found.append(f"{group} was lost: {odd}")
        if group in self.ever_finished and "cancelled" in reasons:
            found.append(f"{group} was finished, and cancelled")
        return found

    def counts(self) -> dict[str, int]:
        """Return how many groups ended how, and how often something was run again."""
        ends: Counter[str] = Counter()
        for episodes in self.members.values():
            state = self.state[episodes[0]]
            ends[self.reason[episodes[0]] if state == "dropped" else state] += 1
        attempts = sum(self.attempt.values())
        return {**ends, "attempts again": attempts, "roll-backs": self.rollbacks}


def replay(run: Path, groups_per_step: int, stride: int = 0) -> Replayed:
    return Replayed(groups_per_step, stride).read(objects(run / "ledger" / "events.jsonl"))


def not_stored(run: Path, replayed: Replayed) -> list[str]:
    """Return trained episodes that are not in the store under their attempt."""
    stored = {
        (row["episode"], row["attempt"])
        for index in sorted((run / "index").glob("*.jsonl"))
        for row in objects(index)
    }
    trained = [episode for episode, state in replayed.state.items() if state == "trained"]
    return [e for e in trained if (e, replayed.attempt[e]) not in stored]


def steps_without_metrics(run: Path, steps: int) -> set[int]:
    recorded = {row["step"] for row in objects(run / "metrics" / "metrics.jsonl")}
    return set(range(1, steps + 1)) - recorded


_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)$")


def log_lines(run: Path) -> list[tuple[float, str]]:
    """Return time (Unix seconds) and text of the lines of the run's log."""
    found = []
    for line in (run / "log.txt").read_text(errors="replace").splitlines():
        if match := _LINE.match(line):
            at = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
            found.append((at.timestamp(), match[2]))
    return found
