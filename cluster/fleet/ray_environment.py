"""Environment variables that Ray reads while it is imported: set before, or never."""

import os
import sys
from pathlib import Path

RAY_START_WAIT = "RAY_raylet_start_wait_time_s"
"""Environment variable of Ray: seconds that its start may take; read once, as ray is imported."""
RAY_START_WAIT_S = 120
"""In place of Ray's 30, which two cores busy with other work outlast."""
RAY_AUTH_MODE = "RAY_AUTH_MODE"
"""Environment variable of Ray: `token` shows the cluster the user's token; read once, too."""


def prepare_environment() -> None:
    """Set what Ray and the stack read once, as they are imported."""
    # The driver computes nothing: no accelerator to look for, no bars for loading a file.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault(RAY_START_WAIT, str(RAY_START_WAIT_S))
    # `ray start` then asks for it, and a cluster that does not is indifferent. Only before Ray is
    # imported: it would start what asks for a token, and show none
    if _has_ray_token() and "ray" not in sys.modules:
        os.environ.setdefault(RAY_AUTH_MODE, "token")


def _has_ray_token() -> bool:
    """Whether there is one where Ray looks for it. Source: Ray's page on token authentication."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()
