"""What workers are given and what they give back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from shapray.config import Job
from shapray.inputs.images import ImageSet
from shapray.network.group import Group
from shapray.pruning.evaluate import Tally
from shapray.storage.run_directory import RunDirectory


@dataclass(frozen=True)
class Setup:
    """What every worker of a run is given, once."""

    job: Job
    model: nn.Module
    groups: tuple[Group, ...]  # those to score
    calibration: ImageSet
    evaluation: ImageSet
    store: RunDirectory


@dataclass(frozen=True)
class InspectTask:
    """Read images ``first`` up to ``last`` of a set; count active units of calibration images."""

    images: str  # "calibration" or "evaluation"
    first: int
    last: int
    cost: float

    def __str__(self) -> str:
        return f"{self.images} images {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Inspection:
    task: InspectTask
    n_active: np.ndarray  # (n_images, n_groups) int32; no columns for evaluation images


@dataclass(frozen=True)
class PrecisionTask:
    """Measure which precision is the faster one on this device."""

    cost: float = 0.0

    def __str__(self) -> str:
        return "the choice of precision"


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Score the units of `group` on calibration images ``first`` up to ``last``."""

    group: str
    first: int
    last: int
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
class EvaluateTask:
    """Measure the network without some units on evaluation images ``first`` up to ``last``."""

    cut: str  # a name, unique among the cuts of a run
    removed: Mapping[str, Sequence[int]]
    first: int
    last: int
    cost: float

    def __str__(self) -> str:
        return f"cut {self.cut}, images {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Evaluation:
    task: EvaluateTask
    tally: Tally
    parameters: int
    multiply_adds: int
