"""What a worker does, in plain Python: a task in, a shard written, a small receipt out."""

import copy
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from shapray.engine.fold import fold
from shapray.engine.network_game import NetworkSplit
from shapray.engine.precision import choose_precision
from shapray.engine.rows import shard_table
from shapray.network.consumers import active_units
from shapray.network.group import Group
from shapray.network.surgery import prune_model
from shapray.pruning.evaluate import Tally, count_macs, tally
from shapray.shapley.coalitions import image_seed
from shapray.shapley.estimators import Estimate, estimate
from shapray.shapley.game import NonFiniteValue
from shapray.storage.shards import publish_shard
from shapray.worker.tasks import (
    EvaluateTask,
    Evaluation,
    Inspection,
    InspectTask,
    PrecisionTask,
    Receipt,
    ScoreTask,
    Setup,
)

N_SPLITS = 4  # groups whose prepared networks a worker keeps
IMAGES_AT_ONCE = 64  # of a forward pass of the whole network


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
        n_bytes = publish_shard(
            self.setup.store,
            task.group,
            task.first,
            task.last,
            shard_table(task.group, ids, labels, estimates),
            task.fingerprint,
        )
        return Receipt(
            task=task,
            n_bytes=n_bytes,
            n_evaluations=sum(found.n_evaluations for found in estimates),
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
