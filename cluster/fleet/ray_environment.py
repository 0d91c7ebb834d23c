"""Environment variables that Ray reads while it is imported, so they must be set before."""

import os
import sys
from pathlib import Path

RAY_START_WAIT = "RAY_raylet_start_wait_time_s"
"""Ray's limit for its own start, in seconds."""
RAY_START_WAIT_S = 120
"""Instead of Ray's 30, which are not enough on two busy cores."""
RAY_AUTH_MODE = "RAY_AUTH_MODE"
"""With `token`, Ray sends the user's token to the cluster."""


def prepare_environment() -> None:
    """Set what Ray and other packages read only while they are imported."""
    # The driver computes nothing: it needs no search for accelerators and no progress bars.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault(RAY_START_WAIT, str(RAY_START_WAIT_S))
    # A cluster that requires no token ignores it. Only before Ray is imported: later, Ray would
    # start a cluster that requires a token and send none.
    if _has_ray_token() and "ray" not in sys.modules:
        os.environ.setdefault(RAY_AUTH_MODE, "token")


def _has_ray_token() -> bool:
    """Whether the user has a Ray token. Source: Ray's page on token authentication."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()
