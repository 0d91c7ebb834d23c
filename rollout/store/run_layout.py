"""Paths of a run directory, and the content of its `run.json`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from envs.errors import MissingError, StoreError
from rollout.store.shared_files import read_bytes

LAYOUT_VERSION = 1
_HOLDER = ".lock-holder-"
_LONGEST_NUMBER = 15


class RunKind(StrEnum):
    """What a run directory is the record of."""

    TRAIN = "train"
    SFT = "sft"
    COLLECT = "collect"
    EVAL = "eval"
    TEACHER = "teacher"
    """The demonstrations of an SFT run, in its folder `teacher`."""
    UNKNOWN = "unknown"
    """Not stated in `run.json`; `run_kind.kind_of` infers it from the directory's content."""

    @property
    def words(self) -> str:
        """The kind in a sentence, with its article."""
        return _WORDS[self]


_WORDS = {
    RunKind.TRAIN: "a training run",
    RunKind.SFT: "an SFT run",
    RunKind.COLLECT: "a collection",
    RunKind.EVAL: "an evaluation",
    RunKind.TEACHER: "a teacher's run",
    RunKind.UNKNOWN: "a run",
}


class RunInfo(BaseModel):
    """`run.json`: what a run is; written when the run starts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str
    """Id of the run, as in every episode's lease."""
    kind: RunKind = RunKind.UNKNOWN
    seed: int
    created_at: float
    """Unix seconds."""
    command: str = ""
    """Command line that started it."""
    versions: dict[str, str] = {}
    """Package versions that the run was started with."""
    input_digests: dict[str, str] = {}
    """SHA-256 of the files that its recipe names, by key; empty in older run directories."""
    layout_version: int = LAYOUT_VERSION


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Paths in the run directory at `root`."""

    root: Path

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def config_toml(self) -> Path:
        return self.root / "config.toml"

    def config_until(self, step: int) -> Path:
        """Recipe of the steps up to `step`, if later steps use another one."""
        return self.root / f"config-until-{step}.toml"

    def config_of(self, step: int) -> Path:
        """Recipe that `step` was trained with."""
        ended = sorted(
            (int(number), path)
            for path in self.root.glob("config-until-*.toml")
            if is_number(number := path.stem.rpartition("-")[2])
        )
        return next((path for last, path in ended if step <= last), self.config_toml)

    @property
    def writer(self) -> Path:
        """Which process wrote last, and through which Ray job; absent in older directories."""
        return self.root / "writer.json"

    @property
    def signature(self) -> Path:
        """Signature of the user whose run it is; absent in older directories."""
        return self.root / "signature.json"

    @property
    def log(self) -> Path:
        """What the commands that wrote to the run have printed, with times; may be absent."""
        return self.root / "log.txt"

    @property
    def mirror_state(self) -> Path:
        """What the process that mirrors the run said last; exists only in a mirrored run."""
        return self.root / "mirror.json"

    @property
    def mirror_claim(self) -> Path:
        """Token with which this directory's last writer claimed the mirror; never mirrored."""
        return self.root / ".mirror-claim"

    @property
    def mirror_copy(self) -> Path:
        """What this directory is a copy of, where it is one that a command has fetched."""
        return self.root / ".mirror-copy.json"

    @property
    def manifest(self) -> Path:
        """Journal of the directory itself: its writers, and the segments that they started."""
        return self.root / "manifest.jsonl"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger" / "events.jsonl"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def episodes(self) -> Path:
        return self.root / "episodes"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics" / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained policy as a Hugging Face folder; it exists only when it is complete."""
        return self.root / "model"

    @property
    def control(self) -> Path:
        """Journal of requests to the running job and its answers."""
        return self.root / "control.jsonl"

    @property
    def health(self) -> Path:
        """What the running job last said of its workers, and of what it waits for."""
        return self.root / "health.json"

    @property
    def requests(self) -> Path:
        """Folder of requests that the job has not taken yet; exists only after a first request."""
        return self.root / "requests"

    @property
    def tool_traffic(self) -> Path:
        """Recorded tool calls and answers; exists only if the run records them."""
        return self.root / "tool_traffic"

    @property
    def teacher(self) -> Path:
        """Run directory of an SFT run's scripted teacher."""
        return self.root / "teacher"

    @property
    def selection(self) -> Path:
        """Which episodes of a collection SFT trains on."""
        return self.root / "selection.json"

    @property
    def older_selection(self) -> Path:
        """The same in older run directories."""
        return self.root / "kept.json"

    @property
    def sft_data(self) -> Path:
        """Digest of the episodes that an SFT run trains on."""
        return self.root / "sft_data.json"

    @property
    def older_sft_data(self) -> Path:
        """The same in older run directories."""
        return self.root / "lessons.json"

    @property
    def eval_json(self) -> Path:
        """Result of an evaluation; it exists only when the evaluation is complete."""
        return self.root / "eval.json"

    @property
    def eval_markdown(self) -> Path:
        """Result of an evaluation as Markdown tables."""
        return self.root / "eval.md"

    @property
    def plot(self) -> Path:
        """Plot of an evaluation's results, or of a training run's metrics."""
        return self.root / "plot.png"

    @property
    def plot_json(self) -> Path:
        """Data of that plot."""
        return self.root / "plot.json"

    @property
    def lock(self) -> Path:
        """Lock file that the one writer holds; contains its process id."""
        return self.root / ".lock"

    def lock_holder(self, number: int) -> Path:
        """Names the writing process, on file systems without flock; the highest number counts."""
        return self.root / f"{_HOLDER}{number:06d}"

    def lock_holders(self) -> list[int]:
        """Numbers of the files that `lock_holder` returns, the highest last."""
        found = (path.name.removeprefix(_HOLDER) for path in self.root.glob(f"{_HOLDER}*"))
        return sorted(int(number) for number in found if is_number(number))

    def annotations(self, step: int) -> Path:
        """Results of the learner at `step`, as an Arrow file."""
        return self.root / "annotations" / f"step-{step:08d}.arrow"

    def segments(self) -> list[str]:
        """Names of the segments, oldest first."""
        return sorted(path.stem for path in self.episodes.glob("*.arrows"))

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that every run directory has."""
        names = ("ledger", "index", "episodes", "annotations", "metrics", "checkpoints")
        return tuple(self.root / name for name in names)


def is_number(name: str) -> bool:
    """Whether a file's name, or a part of it, is a step or another count that was written here."""
    return name.isascii() and name.isdecimal() and len(name) <= _LONGEST_NUMBER


def existing_run(path: Path) -> RunLayout:
    """Return the layout of the run at `path`. Raises MissingError if there is none."""
    layout = RunLayout(path)
    if not path.is_dir():
        raise MissingError(f"expected a run directory, found nothing at {path}: check the path")
    if not layout.run_json.exists():
        raise MissingError(
            f"expected a run directory, found no run.json in {path}: pass the folder that holds it"
        )
    return layout


def read_run_info(layout: RunLayout) -> RunInfo:
    """Return the content of `run.json`. Raises StoreError if it is damaged or too new."""
    try:
        run = RunInfo.model_validate_json(read_bytes(layout.run_json))
    except ValidationError as error:
        raise StoreError(
            f"{layout.run_json}: expected a run's description, found {error}"
        ) from error
    if run.layout_version > LAYOUT_VERSION:
        raise StoreError(
            f"{layout.run_json}: expected layout {LAYOUT_VERSION} or older, found "
            f"{run.layout_version}: a newer trialrun wrote it; read it with that version"
        )
    return run
