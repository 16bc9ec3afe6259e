"""What the report reads from a run's JSON files."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from shapray.errors import JobError
from shapray.storage.run_directory import RunDirectory

M = TypeVar("M", bound="Found")


class Found(BaseModel):
    """Frozen; what is not read may be there."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Latency(Found):
    batch: int
    median_ms: float
    p95_ms: float
    n_passes: int
    threads: int
    device: str


class Measured(Found):
    """A network on the evaluation images."""

    top1: float
    top1_low: float
    top1_high: float
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    parameters: int
    multiply_adds: int
    n_images: int
    n_removed: int


class Timed(Measured):
    file_bytes: int
    latency: list[Latency]
    per_class: list[float | None] | None = None


class Behind(Found):
    """How much lower a rival's accuracy is than the job's own network's, image by image."""

    difference: float
    low: float
    high: float


class Rival(Measured):
    criterion: str = "random"
    rounds: int = 1
    seed: int | None = None
    behind: Behind | None = None


class Metrics(Found):
    """``prune/metrics.json``."""

    target: dict[str, float]
    criterion: str
    allocation: str
    repair: list[str]
    rounds: int = 1
    before: Timed
    cut: Timed
    after: Timed
    random: list[Rival]
    criteria: list[Rival]


class Removed(Found):
    n_units: int
    removed: list[int]


class CutPlan(Found):
    """``prune/plan.json``."""

    groups: dict[str, Removed]


class Stage(Found):
    state: str = "waiting"
    start: str | None = None
    end: str | None = None
    workers: int | None = None
    worker_seconds: float | None = None
    evaluations: int | None = None
    shard_bytes: int | None = None
    tasks: int | None = None
    tasks_failed: int | None = None
    tasks_found_done: int | None = None

    @property
    def was_there(self) -> bool:
        """Whether an earlier run had done all of it."""
        return bool(self.tasks) and self.tasks_found_done == self.tasks


class Failed(Found):
    stage: str
    task: str
    message: str


def _empty_if_none(found: Any) -> Any:
    return [] if found is None else found


class Record(Found):
    """``run.json``. `class_names`: what labels are called, empty where nobody said."""

    name: str
    job: dict[str, Any]
    started: str | None = None
    versions: dict[str, str | None] = {}
    stages: dict[str, Stage]
    failures: list[Failed] = []
    fingerprint: str | None = None
    fingerprint_parts: dict[str, Any] = {}
    precision: str | None = None
    evaluation: str | None = None
    example_shape: list[int] | None = None
    n_classes: int | None = None
    class_names: Annotated[list[str], BeforeValidator(_empty_if_none)] = []

    @property
    def not_done(self) -> list[str]:
        """Stages that are not done; that of the report itself is while it is made."""
        return [name for name, of in self.stages.items() if of.state != "done" and name != "report"]

    def asked(self, *keys: str) -> Any:
        """A value of the job, None where it has none."""
        value: Any = self.job
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_record(store: RunDirectory, path: str, kind: type[M]) -> M | None:
    """The JSON file under `path`, None if it is not there.

    Raises:
        JobError: it is damaged; the message names the file, the first key that is wrong and what
            was found.
        StorageError: it cannot be read.
    """
    found = store.read_json(path)
    if found is None:
        return None
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        lacks = first["type"] == "missing"
        what = "is missing" if lacks else f"is {str(first['input'])[:60]!r}: {first['msg']}"
        raise JobError(
            f"{store.shown}/{path} is damaged or not one of this program's: '{key}' {what}"
        ) from error
