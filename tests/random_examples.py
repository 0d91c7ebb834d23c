"""How many random inputs the tests of random inputs try."""

import os


def examples(usual: int) -> int:
    """Return `usual`, or what TRIALRUN_EXAMPLES says: more than a test of every day may take."""
    return int(os.environ.get("TRIALRUN_EXAMPLES", usual))
