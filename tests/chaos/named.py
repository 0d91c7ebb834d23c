"""Whether the log of a run names a fault."""

import re
from collections.abc import Sequence

from tests.chaos.faults import Blow, Fault, Target
from tests.chaos.journal import Line


def is_named(fault: Fault, line: Line, lines: Sequence[tuple[float, str]]) -> bool:
    """Whether the log says, after the fault, what it hit."""
    match fault.target:
        case Target.WORKER | Target.ENGINE:
            wanted = rf"{line.victim} lost after"
        case Target.TOOL_SERVER:
            wanted = rf"tool server {line.victim.partition(',')[0]}/0 lost after"
        case Target.FORK_SERVER:
            wanted = rf"tool server .*{line.victim.split()[-1]}.* fork server|tool server .* lost"
        case Target.LEARNER:
            wanted = "the learner was lost"
        case Target.RAYLET:
            wanted = r"lost after .*(node|raylet|actor died)"
        case Target.DISK if fault.blow is Blow.SLOW:
            wanted = "it is slow"
        case Target.DRIVER if fault.blow is Blow.STOP:
            wanted = "stood still"
        case Target.DRIVER if fault.blow is Blow.KILL:
            wanted = r"\d+ rollout workers of the driver before go on"
        case _:
            wanted = "continues from"
    return any(at >= int(line.at) and re.search(wanted, text) for at, text in lines)
