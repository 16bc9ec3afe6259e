"""What a worker does, in plain Python: a task in, a shard written, a small receipt out."""

import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

from shapray.engine.score import Scorer, score_images
from shapray.network.consumers import count_active
from shapray.pruning.compressed import compressed
from shapray.pruning.criteria import criterion
from shapray.pruning.evaluate import count_macs, joined, tally
from shapray.pruning.repair.curves import CURVE_IMAGES, loss_curves
from shapray.pruning.repair.walk import images_that_fit
from shapray.pruning.saved import weights_bytes
from shapray.storage.shards import publish_shard
from shapray.worker.rows import shard_table
from shapray.worker.tasks import (
    CriterionScores,
    CriterionTask,
    EvaluateTask,
    Evaluation,
    GroupLosses,
    Inspection,
    InspectTask,
    LossTask,
    PrecisionTask,
    Receipt,
    ScoreTask,
    Setup,
)

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
        self.example = setup.calibration.load(0, 1)
        memory = setup.job.cluster.memory_per_worker
        self.scorer = Scorer(setup.model, setup.groups, self.example, device, memory)
        self._cut: tuple[str, nn.Module, tuple[str, ...], int, int] | None = None
        self._images: Tensor | None = None
        self._on_device: nn.Module | None = None

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
        return self.scorer.choose_precision()

    def score(self, task: ScoreTask) -> Receipt:
        """Compute a shard and publish it.

        Raises:
            JobError: an image cannot be read.
            ValueError: a value is not finite; names group, image and coalition.
            StorageError: the shard cannot be written.
        """
        start = time.monotonic()
        score, calibration = self.setup.job.score, self.setup.calibration
        images = calibration.load(task.first, task.last)
        ids = calibration.ids[task.first : task.last]
        labels = None if calibration.labels is None else calibration.labels[task.first : task.last]
        split = self.scorer.split(task.group, task.precision)
        before = time.monotonic()
        estimates = score_images(split, images, labels, ids, score, len(calibration))
        evaluating = time.monotonic() - before
        table = shard_table(task.group, ids, labels, estimates)
        n_bytes = publish_shard(
            self.setup.store, task.group, task.first, task.last, table, task.fingerprint
        )
        return Receipt(
            task=task,
            n_bytes=n_bytes,
            n_evaluations=sum(found.n_evaluations for found in estimates),
            seconds_evaluating=evaluating,
            seconds=time.monotonic() - start,
        )

    def criterion(self, task: CriterionTask) -> CriterionScores:
        """All units by another criterion, on the calibration images."""
        images, labels = self._calibration(len(self.setup.calibration))
        scores = criterion(
            task.criterion,
            self._whole(),
            self.setup.groups,
            images,
            labels,
            self.setup.job.score.seed,
        )
        return CriterionScores(task, scores)

    def losses(self, task: LossTask) -> GroupLosses:
        """What cutting a group alone costs, on calibration images."""
        group = self.scorer.groups[task.group]
        images, _ = self._calibration(min(CURVE_IMAGES, self._repairable()))
        repaired = "least_squares" in self.setup.job.prune.repair
        found = loss_curves(self._whole(), group, task.orders, images, repaired, self._folded())
        return GroupLosses(task, found)

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Hits and losses of a cut network on some images, and its size.

        Raises:
            StorageError: the network's files cannot be written.
        """
        images_of, device = getattr(self.setup, task.images), self.scorer.device
        network, notes, parameters, multiply_adds = self._compressed(task)
        parts = []
        for first in range(task.first, task.last, IMAGES_AT_ONCE):
            last = min(first + IMAGES_AT_ONCE, task.last)
            images = images_of.load(first, last)
            parts.append(tally(network, images, images_of.labels[first:last], device))
        return Evaluation(task, joined(parts), parameters, multiply_adds, notes)

    def _compressed(self, task: EvaluateTask) -> tuple[nn.Module, tuple[str, ...], int, int]:
        """The network of a cut, kept for the next slice of images."""
        if self._cut is None or self._cut[0] != task.cut.name:
            setup, cut = self.setup, task.cut
            n_images = self._repairable() if cut.repair else 1
            if task.images == "calibration":
                n_images = max(1, min(n_images, task.first))
            images, labels = self._calibration(n_images)
            made = compressed(
                self._whole(),
                setup.groups,
                cut.removed,
                cut.repair,
                images,
                labels,
                setup.job.prune,
                setup.job.score.seed,
            )
            if task.publish is not None:
                setup.store.publish(
                    f"{task.publish}/model.safetensors", weights_bytes(made.network)
                )
            parameters, macs = count_macs(made.network, images[:1])
            self._cut = (task.cut.name, made.network, made.notes, parameters, macs)
        return self._cut[1:]

    def _whole(self) -> nn.Module:
        """The network on the worker's device."""
        if self._on_device is None:
            model, device = self.setup.model, self.scorer.device
            self._on_device = model if device.type == "cpu" else copy.deepcopy(model).to(device)
        return self._on_device

    def _folded(self) -> nn.Module:
        return self.scorer.folded.to(self.scorer.device)

    def _calibration(self, n: int) -> tuple[Tensor, Tensor | None]:
        """The first calibration images and their labels, on the worker's device."""
        images, device = self.setup.calibration, self.scorer.device
        if self._images is None or len(self._images) < n:
            self._images = images.load(0, n).to(device)
        labels = None if images.labels is None else images.labels[:n].to(device)
        return self._images[:n], labels

    def _repairable(self) -> int:
        """How many calibration images a repair may hold the activations of."""
        folded, memory = self._folded(), self.setup.job.cluster.memory_per_worker
        return min(len(self.setup.calibration), images_that_fit(folded, self.example, memory))
