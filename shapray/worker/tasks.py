"""What workers are given and what they give back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import nn

from shapray.config import Job
from shapray.explain.activations import Activations
from shapray.explain.extremes import Extremes
from shapray.explain.games import Asked
from shapray.inputs.images import ImageSet
from shapray.network.group import Group
from shapray.pruning.cuts import Cut
from shapray.pruning.evaluate import Tally
from shapray.pruning.latency import Latency
from shapray.shapley.pilot import Pilot, Price
from shapray.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class Setup:
    """What every worker of a run is given, once.

    Attributes:
        groups: those to score.
        held_back: images on which a search for a size measures, of those that there are for
            calibration; its repairs do without them. None if there is no search.
    """

    job: Job
    model: nn.Module
    groups: tuple[Group, ...]
    calibration: ImageSet
    evaluation: ImageSet
    held_back: ImageSet | None
    store: RunDirectory


@dataclass(frozen=True)
class InspectTask:
    """Read images ``first`` up to ``last`` of a set; count active units of calibration images."""

    images: str  # "calibration", "evaluation" or "held_back"
    first: int
    last: int
    cost: float

    def __str__(self) -> str:
        return f"{self.images} images {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Inspection:
    task: InspectTask
    n_active: np.ndarray  # (n_images, n_groups) int32; no columns but for calibration images


@dataclass(frozen=True)
class PrecisionTask:
    """Measure which precision is the faster one on this device."""

    cost: float = 0.0

    def __str__(self) -> str:
        return "the choice of precision"


@dataclass(frozen=True)
class PilotTask:
    """Find out on some calibration images what sampling the units of `group` is worth."""

    group: str
    images: tuple[int, ...]
    precision: str
    cost: float

    def __str__(self) -> str:
        return f"the price of group {self.group}"


@dataclass(frozen=True)
class Piloted:
    task: PilotTask
    pilot: Pilot


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Score the units of `group` on calibration images ``first`` up to ``last``."""

    group: str
    first: int
    last: int
    price: Price
    precision: str
    fingerprint: str
    cost: float  # expected multiply-adds

    def __str__(self) -> str:
        return f"group {self.group}, images {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Receipt:
    """A shard is there. Times in seconds."""

    task: ScoreTask
    n_bytes: int
    n_evaluations: int
    seconds_evaluating: float
    seconds: float


@dataclass(frozen=True)
class CriterionTask:
    """Score all units by a criterion.

    Attributes:
        prices: those of the groups' Shapley values.
        most_images: calibration images; None: all.
    """

    criterion: str
    prices: Mapping[str, Price]
    cost: float
    most_images: int | None = None

    def __str__(self) -> str:
        return f"criterion {self.criterion}"


@dataclass(frozen=True)
class CriterionScores:
    task: CriterionTask
    scores: Mapping[str, np.ndarray]  # group -> (n_units,)
    notes: tuple[str, ...]  # what is to be said of it, a line each


@dataclass(frozen=True)
class LossTask:
    """Measure what cutting `group` alone costs, by several orders of its units."""

    group: str
    orders: Mapping[str, Sequence[int]]  # ranking -> units, those that go first in front
    cost: float

    def __str__(self) -> str:
        return f"losses of group {self.group}"


@dataclass(frozen=True)
class GroupLosses:
    task: LossTask
    losses: Mapping[str, Sequence[float]]  # ranking -> loss at `repair.curves.counts`


@dataclass(frozen=True)
class LatencyTask:
    """Time the whole network and cut ones in turns, on one worker."""

    name: str
    removed: Mapping[str, Mapping[str, Sequence[int]]]  # a name -> group -> units
    batches: tuple[int, ...]
    cost: float = 1.0

    def __str__(self) -> str:
        return f"latency of {self.name}"


@dataclass(frozen=True)
class Latencies:
    """Of every network, the whole one among them as "whole", a timing per batch size."""

    task: LatencyTask
    found: Mapping[str, tuple[Latency, ...]]


@dataclass(frozen=True)
class CutTask:
    """Make a cut network, to be scored, and put its files into a folder of the run directory."""

    cut: Cut
    folder: str
    cost: float = 1.0

    def __str__(self) -> str:
        return f"cut {self.cut.name}"


@dataclass(frozen=True)
class CutMade:
    task: CutTask
    notes: tuple[str, ...]  # what is to be said of it, a line each


@dataclass(frozen=True)
class EvaluateTask:
    """Measure a cut network on images ``first`` up to ``last`` of a set.

    Attributes:
        publish: folder of the run directory for the network's files; None if it is not kept.
        images: "evaluation"; or "held_back", which take no part in the repair then.
    """

    cut: Cut
    first: int
    last: int
    cost: float
    publish: str | None = None
    images: str = "evaluation"

    def __str__(self) -> str:
        return f"cut {self.cut.name}, images {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Evaluation:
    """What was found of a cut network.

    Attributes:
        file_bytes: of its weights as a safetensors file.
        notes: what is to be said of it, a line each.
    """

    task: EvaluateTask
    tally: Tally
    parameters: int
    multiply_adds: int
    file_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ActivationTask:
    """Measure all units' activations on calibration images."""

    n_images: int
    cost: float

    def __str__(self) -> str:
        return "activations"


@dataclass(frozen=True)
class Activated:
    task: ActivationTask
    found: Mapping[str, Activations]  # group -> of its units


@dataclass(frozen=True)
class ExplainTask:
    """Explain the scores of `group`.

    Attributes:
        shards: first and last (exclusive) image of each.
        fingerprint: of the run.
        asked: of the game that is played again.
        images: places of calibration images on which it may be, drawn from those that the group
            was scored on.
        card: units at each end, and images each way, that are shown.
        scores: the group's rows of ``scores.parquet``.
    """

    group: str
    shards: tuple[tuple[int, int], ...]
    fingerprint: str
    precision: str
    asked: Asked
    images: tuple[int, ...]
    card: tuple[int, int]
    scores: pa.Table
    cost: float

    def __str__(self) -> str:
        return f"explanation of group {self.group}"


@dataclass(frozen=True)
class Explained:
    """What there is to say of a group.

    Attributes:
        tables: by name, the group's rows of tables of `storage.explained`.
        extremes: what its shards say.
    """

    task: ExplainTask
    tables: Mapping[str, pa.Table]
    extremes: Extremes


@dataclass(frozen=True)
class ClassTask:
    """Measure what becomes of each class without some units, chosen by the score tables."""

    cost: float = 1.0

    def __str__(self) -> str:
        return "classes without some units"


@dataclass(frozen=True)
class ClassRemoved:
    task: ClassTask
    table: pa.Table
