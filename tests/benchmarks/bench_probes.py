"""Every hostile probe in every setting: contained, weak, open, or not applicable.

    python -m tests.benchmarks.bench_probes [--markdown] [--setting NAME ...] [--profile NAME ...]

Takes some minutes; as root it covers all settings. Ends with code 1 where a verdict is not the one
that `tests/envs/sandbox/probes_stated.py` states.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from envs.config import SandboxProfile
from tests.envs.sandbox.probes import FILES
from tests.envs.sandbox.probes_run import Sweep, Verdict, run
from tests.envs.sandbox.probes_sessions import PROBES
from tests.envs.sandbox.probes_setting import SETTINGS, Setting
from tests.envs.sandbox.probes_stated import NOT_COVERED, WEAKNESSES

_MARKS: dict[Verdict | None, str] = {"contained": "·", None: "", "weak": "weak", "open": "OPEN"}


def possible(setting: Setting, profile: SandboxProfile) -> bool:
    """Return whether the setting's level can keep the profile's promise."""
    return profile == "compute" or (setting.level, profile) in WEAKNESSES


def column(sweep: Sweep) -> dict[str, str]:
    """Return what to print by the name of the probe."""
    return {
        finding.probe: _MARKS.get(finding.verdict, finding.verdict) for finding in sweep.findings
    }


def unexpected(sweep: Sweep) -> list[str]:
    """Return one line for each verdict that is not as stated; none at level `none`."""
    stated = WEAKNESSES.get((sweep.level, sweep.profile))  # pyright: ignore[reportArgumentType]
    if stated is None:
        return []
    lines = []
    for finding in sweep.findings:
        wanted = "weak" if finding.probe in stated else "contained"
        if finding.verdict != wanted:
            seen = "; ".join(finding.evidence) or finding.answer
            lines.append(f"{sweep.setting}, {sweep.profile}: {finding.probe}: {wanted} -> {seen}")
    return lines


def summary(sweep: Sweep) -> str:
    """Return the counts of one setting in one line."""
    counts = ", ".join(
        f"{len(sweep.names(verdict))} {verdict}"
        for verdict in get_args(Verdict)
        if sweep.names(verdict)
    )
    return f"{sweep.setting}, {sweep.profile}: {counts} ({sweep.isolation})"


def print_table(sweeps: Sequence[Sweep], *, markdown: bool) -> None:
    """Print probe by setting, then a line for each setting."""
    columns = [column(sweep) for sweep in sweeps]
    heads = [f"{sweep.setting}, {sweep.profile}" for sweep in sweeps]
    if markdown:
        print("| family | probe |", " | ".join(heads), "|")
        print("|---|---|" + ":-:|" * len(heads))
    else:
        for number, head in enumerate(heads, start=1):
            print(f"({number}) {head}")
        numbers = "".join(f"{f'({n})':>6}" for n in range(1, len(heads) + 1))
        print(f"{'':52}{numbers}")
    for probe in PROBES:
        cells = [marks.get(probe.name, "") for marks in columns]
        if markdown:
            print(f"| {probe.family} | {probe.name} |", " | ".join(cells), "|")
        else:
            print(f"{f'{probe.family}: {probe.name}':52}" + "".join(f"{c:>6}" for c in cells))


def print_notes(sweeps: Sequence[Sweep]) -> None:
    """Print the counts, why weak is weak, and what no probe covers."""
    print()
    for sweep in sweeps:
        print("-", summary(sweep))
    print("\nKnown weaknesses:")
    for (level, profile), reasons in WEAKNESSES.items():
        for name, reason in reasons.items():
            print(f"- {level}, {profile}: {name}: {reason}")
    print("\nNot covered:")
    for text in NOT_COVERED:
        print("-", text)


def main() -> int:
    """Print the table; return 1 where something is not as stated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--setting", nargs="*", default=[setting.name for setting in SETTINGS])
    parser.add_argument("--profile", nargs="*", default=["compute", *FILES])
    options = parser.parse_args()
    sweeps = []
    for profile in options.profile:
        for setting in SETTINGS:
            if setting.name in options.setting and possible(setting, profile):
                print(f"{setting.name}, {profile} ...", file=sys.stderr)
                sweep = run(setting, profile)
                if sweep.refusal:
                    print(f"{setting.name}: {sweep.refusal}", file=sys.stderr)
                else:
                    sweeps.append(sweep)
    print_table(sweeps, markdown=options.markdown)
    print_notes(sweeps)
    wrong = [line for sweep in sweeps for line in unexpected(sweep)]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
