"""What a person sees while a command runs: rich on a terminal, plain lines elsewhere."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import track

_Shown = tuple[str, str, str]
"""A metric, what it is called here, and its format, which may end in a unit."""
_SHOWN = (
    ("answer_mean", "success", ".2f"),
    ("reward_mean", "reward", ".2f"),
    ("trial_calls", "trials", ".1f"),
    ("entropy", "entropy", ".2f"),
    ("grad_norm", "grad", ".2f"),
    ("mismatch_kl", "kl", ".1e"),
    ("dlogp_max", "|dlogp|max", ".1e"),
    ("staleness_max", "stale", ".0f"),
    ("collect_s", "collect", ".1fs"),
    ("learn_s", "learn", ".1fs"),
    ("push_s", "push", ".2fs"),
)
_IMITATED = (
    ("loss", "loss", ".3f"),
    ("grad_norm", "grad", ".2f"),
    ("lr", "lr", ".1e"),
    ("tokens_per_s", "tok/s", ",.0f"),
)
_IMITATED_LINES = 20
"""An SFT makes thousands of steps: each twentieth of it is one line."""


class Progress:
    """Prints to standard error, so that standard output stays a command's result."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)

    def say(self, text: str) -> None:
        """Print one line about what happens next."""
        self._console.print(
            f"[bold]{escape(text)}[/]" if self._console.is_terminal else escape(text)
        )

    def track(self, steps: Sequence[int]) -> Iterable[int]:
        """Go through `steps`, with a bar and the time left on a terminal."""
        if not self._console.is_terminal:
            return steps
        return track(steps, "training", console=self._console, transient=True)

    def step(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Print one line about a finished step of reinforcement learning."""
        self._line(step, steps, metrics, _SHOWN)

    def imitated(self, metrics: Mapping[str, float]) -> None:
        """Print one line about a finished step of SFT, if it completes a twentieth of all."""
        step, steps = int(metrics["step"]), int(metrics["steps"])
        if step * _IMITATED_LINES // steps > (step - 1) * _IMITATED_LINES // steps:
            self._line(step, steps, metrics, _IMITATED)

    def _line(
        self, step: int, steps: int, metrics: Mapping[str, float], shown: Sequence[_Shown]
    ) -> None:
        parts = [f"{label} {_number(metrics[k], form)}" for k, label, form in shown if k in metrics]
        width = len(str(steps))
        self._console.print(f"step {step:>{width}}/{steps}  " + "  ".join(parts), soft_wrap=True)


def _number(value: float, form: str) -> str:
    suffix = "s" if form.endswith("s") else ""
    return f"{value:{form.removesuffix('s')}}{suffix}"
