"""The table of a chaos run: seconds until each fault was noticed, and until it was over."""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import Fault
from tests.chaos.journal import Journal


def times(schedule: Sequence[Fault], journal: Journal) -> dict[int, tuple[float, float]]:
    """Return per fault the seconds until it was noticed, and until the run worked as before."""
    began, noticed, over = (journal.of(event) for event in ("injected", "noticed", "over"))
    return {
        number: (noticed[number].at - began[number].at, over[number].at - began[number].at)
        for number in range(len(schedule))
        if number in noticed and number in over
    }


def print_table(schedule: Sequence[Fault], journal: Journal) -> None:
    """Print medians and maxima per kind of fault."""
    kinds: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for number, pair in times(schedule, journal).items():
        fault = schedule[number]
        kinds[(fault.target, fault.state, fault.blow)].append(pair)
    table = Table(title="Faults: seconds until noticed, and until the run worked as before")
    for heading in ("what", "state", "how", "times", "noticed", "max", "over", "max"):
        table.add_column(
            heading, justify="left" if heading in ("what", "state", "how") else "right"
        )
    for (target, state, blow), pairs in kinds.items():
        noticed, over = zip(*pairs, strict=True)
        figures = (statistics.median(noticed), max(noticed), statistics.median(over), max(over))
        table.add_row(target, state, blow, str(len(pairs)), *(f"{x:.1f}" for x in figures))
    Console(width=110).print(table)
