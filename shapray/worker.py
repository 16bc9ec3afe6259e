"""What a worker does, in plain Python: a task in, a shard written, a small receipt out."""

import copy
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from shapray.activity import active_units
from shapray.calibration import ImageSet
from shapray.coalitions import image_seed
from shapray.config import Job
from shapray.estimators import Estimate, estimate
from shapray.evaluate import Tally, count_macs, tally
from shapray.fold import fold
from shapray.game import NonFiniteValue
from shapray.groups import Group
from shapray.network_game import NetworkSplit
from shapray.precision import choose_precision
from shapray.store import SHARD, RunDirectory, shard_path
from shapray.surgery import prune_model

N_SPLITS = 4  # groups whose prepared networks a worker keeps
IMAGES_AT_ONCE = 64  # of a forward pass of the whole network


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
    path: str
    n_rows: int
    n_bytes: int
    n_evaluations: int
    n_exact: int  # images
    n_values: int  # values of units, over images
    n_exact_values: int
    seconds_evaluating: float
    seconds: float


@dataclass(frozen=True)
class EvaluateTask:
    """Measure the network without some units on evaluation images ``first`` up to ``last``."""

    network: str  # a name, unique among the networks of a run
    removed: Mapping[str, Sequence[int]]
    first: int
    last: int
    cost: float

    def __str__(self) -> str:
        return f"network {self.network}, images {self.first}-{self.last - 1}"


@dataclass(frozen=True)
class Evaluation:
    task: EvaluateTask
    tally: Tally
    parameters: int
    multiply_adds: int


class Worker:
    """Does tasks, one after the other, keeping what the next one is likely to need again.

    Args:
        setup: the run's network, groups, images and directory.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, setup: Setup, device: str) -> None:
        # As many threads as were asked for: BLAS adds in another order with another number.
        torch.set_num_threads(setup.job.cluster.cpus_per_worker)
        self.setup = setup
        self.device = torch.device(device)
        self.groups = {group.name: group for group in setup.groups}
        self.example = setup.calibration.load(0, 1)
        self._folded: nn.Module | None = None
        self._splits: OrderedDict[tuple[str, str], NetworkSplit] = OrderedDict()
        self._pruned: tuple[str, nn.Module, int, int] | None = None

    def inspect(self, task: InspectTask) -> Inspection:
        """Raises JobError for an image that cannot be read or decoded."""
        images = getattr(self.setup, task.images)
        parts = []
        for first in range(task.first, task.last, IMAGES_AT_ONCE):
            batch = images.load(first, min(first + IMAGES_AT_ONCE, task.last))
            groups = self.setup.groups if task.images == "calibration" else ()
            parts.append(count_active(self.setup.model, groups, batch))
        return Inspection(task, np.concatenate(parts))

    def choose_precision(self, task: PrecisionTask) -> str:
        """float32 or bfloat16, by measuring on this worker's device."""
        return choose_precision(
            self._network(),
            list(self.groups.values()),
            self.example,
            self.device,
            self.setup.job.cluster.memory_per_worker,
        )

    def score(self, task: ScoreTask) -> Receipt:
        """Compute a shard and publish it.

        Raises:
            JobError: an image cannot be read.
            ValueError: a value is not finite; names group, image and coalition.
            StorageError: the shard cannot be written.
        """
        start = time.monotonic()
        job, calibration = self.setup.job, self.setup.calibration
        images = calibration.load(task.first, task.last)
        ids = calibration.ids[task.first : task.last]
        labels = None if calibration.labels is None else calibration.labels[task.first : task.last]
        split = self._split(task.group, task.precision)
        before, value = time.monotonic(), job.score.value
        estimates: list[Estimate] = []
        at_once = split.images_at_once(job.score.permutations)
        for part in range(0, len(ids), at_once):
            here = slice(part, part + at_once)
            try:
                estimates += estimate(
                    split.game(images[here], None if labels is None else labels[here], value),
                    job.score,
                    [image_seed(job.score.seed, task.group, image_id) for image_id in ids[here]],
                    len(calibration),
                )
            except NonFiniteValue as error:
                raise ValueError(
                    f"group {task.group}, image {ids[part + error.image]}: the value is "
                    f"{error.value} with the {len(error.coalition)} units {error.coalition} kept"
                ) from error
        evaluating = time.monotonic() - before
        n_bytes = self.setup.store.publish_shard(
            task.group,
            task.first,
            task.last,
            shard_table(task.group, ids, labels, estimates),
            task.fingerprint,
        )
        n_units = self.groups[task.group].n_units
        n_exact = sum(found.estimator == "exact" for found in estimates)
        return Receipt(
            task=task,
            path=shard_path(task.group, task.first, task.last),
            n_rows=len(ids),
            n_bytes=n_bytes,
            n_evaluations=sum(found.n_evaluations for found in estimates),
            n_exact=n_exact,
            n_values=n_units * len(ids),
            n_exact_values=n_units * n_exact,
            seconds_evaluating=evaluating,
            seconds=time.monotonic() - start,
        )

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Top-1 hits and loss of a pruned network on some evaluation images, and its size."""
        evaluation = self.setup.evaluation
        assert evaluation.labels is not None
        if self._pruned is None or self._pruned[0] != task.network:
            network = copy.deepcopy(self.setup.model)
            if any(task.removed.values()):
                network = prune_model(network, self.example, task.removed)
            parameters, multiply_adds = count_macs(network, self.example)
            self._pruned = (task.network, network.to(self.device), parameters, multiply_adds)
        _, network, parameters, multiply_adds = self._pruned
        total = Tally(0, 0, 0.0)
        for first in range(task.first, task.last, IMAGES_AT_ONCE):
            last = min(first + IMAGES_AT_ONCE, task.last)
            images = evaluation.load(first, last)
            total += tally(network, images, evaluation.labels[first:last], self.device)
        return Evaluation(task, total, parameters, multiply_adds)

    def _network(self) -> nn.Module:
        if self._folded is None:
            self._folded = fold(self.setup.model, self.example)
        return self._folded

    def _split(self, group: str, precision: str) -> NetworkSplit:
        key = (group, precision)
        if key not in self._splits:
            while len(self._splits) >= N_SPLITS:
                self._splits.popitem(last=False)
            self._splits[key] = NetworkSplit(
                self._network(),
                self.groups[group],
                self.example,
                precision=precision,
                device=self.device,
                memory=self.setup.job.cluster.memory_per_worker,
            )
        self._splits.move_to_end(key)
        return self._splits[key]


def count_active(model: nn.Module, groups: Sequence[Group], images: Tensor) -> np.ndarray:
    """How many units of each group are active for each image: (n_images, n_groups) int32."""
    active = active_units(model, groups, images)
    counts = [active[group.name].sum(1).cpu().numpy() for group in groups]
    return np.array(counts, dtype=np.int32).reshape(len(groups), len(images)).T


def shard_table(
    group: str, ids: Sequence[str], labels: Tensor | None, estimates: Sequence[Estimate]
) -> pa.Table:
    """Estimates as the rows of a shard; a standard error that was not measured becomes null."""
    for image_id, found in zip(ids, estimates, strict=True):
        assert np.isfinite(found.shapley_value).all(), (group, image_id)
    return pa.Table.from_pydict(
        {
            "group": [group] * len(ids),
            "image_id": list(ids),
            "label": [None] * len(ids) if labels is None else labels.tolist(),
            "n_active": [int(found.active.sum()) for found in estimates],
            "estimator": [found.estimator for found in estimates],
            "n_evaluations": [found.n_evaluations for found in estimates],
            "n_permutations": [found.n_permutations for found in estimates],
            "value_all": [found.value_all for found in estimates],
            "value_none": [found.value_none for found in estimates],
            "shapley_value": [found.shapley_value.tolist() for found in estimates],
            "standard_error": [
                [None if math.isnan(error) else error for error in found.standard_error.tolist()]
                for found in estimates
            ],
            "active": [found.active.tolist() for found in estimates],
        },
        schema=SHARD,
    )
