"""What a worker does, in plain Python: a task in, a shard written, a small receipt out."""

import time
from collections.abc import Callable

import numpy as np
import torch

from shapray.engine.score import Scorer, score_images
from shapray.network.consumers import count_active
from shapray.pruning.evaluate import IMAGES_AT_ONCE
from shapray.storage.shards import publish_shard
from shapray.worker.cutter import Cutter
from shapray.worker.explainer import Explainer
from shapray.worker.piloting import pilot_on
from shapray.worker.rows import shard_table
from shapray.worker.tasks import (
    Activated,
    ActivationTask,
    ClassRemoved,
    ClassTask,
    CriterionScores,
    CriterionTask,
    CutMade,
    CutTask,
    EvaluateTask,
    Evaluation,
    Explained,
    ExplainTask,
    GroupLosses,
    Inspection,
    InspectTask,
    Latencies,
    LatencyTask,
    LossTask,
    Piloted,
    PilotTask,
    PrecisionTask,
    Receipt,
    ScoreTask,
    Setup,
)


class Worker:
    """Does tasks, one after the other, keeping what the next one is likely to need again.

    Args:
        setup: the run's network, groups, images and directory.
        device: ``cpu`` or ``cuda``.
    Attributes:
        say: hears how far a task is that takes long; set by who holds the worker.
    """

    say: Callable[[str], None]

    def __init__(self, setup: Setup, device: str) -> None:
        # As many threads as were asked for: BLAS adds in another order with another number.
        torch.set_num_threads(setup.job.cluster.cpus_per_worker)
        self.setup = setup
        self.example = setup.calibration.load(0, 1)
        memory = setup.job.cluster.memory_per_worker
        self.scorer = Scorer(setup.model, setup.groups, self.example, device, memory)
        self.cutter = Cutter(setup, self.scorer)
        self.explainer = Explainer(setup, self.scorer, self.cutter)

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
        """float32, tf32 or bfloat16, by measuring on this worker's device."""
        return self.scorer.choose_precision(self.setup.job.score)

    def pilot(self, task: PilotTask) -> Piloted:
        """What some images tell of a group.

        Raises:
            JobError: an image cannot be read.
            ValueError: a value is not finite; names group, image and coalition.
        """
        split = self.scorer.split(task.group, task.precision)
        return Piloted(task, pilot_on(self.setup, split, task.images))

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
        places = range(task.first, task.last)
        estimates = score_images(split, images, labels, ids, score, task.price, places)
        evaluating = time.monotonic() - before
        table = shard_table(task.group, ids, labels, estimates)
        n_bytes = publish_shard(
            self.setup.store,
            task.group,
            task.first,
            task.last,
            table,
            task.fingerprint,
            str(task.price),
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
        return self.cutter.criterion(task)

    def losses(self, task: LossTask) -> GroupLosses:
        """What cutting a group alone costs, on calibration images."""
        return self.cutter.losses(task)

    def latency(self, task: LatencyTask) -> Latencies:
        """How fast cut networks are on this worker, beside the whole one."""
        return self.cutter.latency(task)

    def cut(self, task: CutTask) -> CutMade:
        """A cut network's files.

        Raises:
            StorageError: they cannot be written.
        """
        return self.cutter.cut(task, self.say)

    def activations(self, task: ActivationTask) -> Activated:
        """All units' activations on calibration images."""
        return self.explainer.activations(task)

    def explain(self, task: ExplainTask) -> Explained:
        """How the scores of a group come about.

        Raises:
            UnsoundShard, StorageError: a shard of it cannot be read.
            ValueError: a value is not finite; names group, image and coalition.
        """
        return self.explainer.explain(task)

    def remove_classes(self, task: ClassTask) -> ClassRemoved:
        """What becomes of each class without some units."""
        return self.explainer.remove_classes(task)

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Hits and losses of a cut network on some images, and its size.

        Raises:
            StorageError: the network's files cannot be written.
        """
        return self.cutter.evaluate(task, self.say)
