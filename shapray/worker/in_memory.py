"""A worker whose images are in memory and whose results go back to who asked; knows no file."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor, nn

from shapray.config import Cluster, Score
from shapray.engine.score import Scorer, score_images, try_images
from shapray.network.group import Group
from shapray.worker.rows import shard_table
from shapray.worker.tasks import Piloted, PilotTask, PrecisionTask, ScoreTask


@dataclass(frozen=True)
class ImagesInMemory:
    """Images to score.

    Attributes:
        pixels: (n, channels, height, width) float32.
        labels: (n,) int64, or None.
        ids: of the images, all different.
    """

    pixels: Tensor
    labels: Tensor | None
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Rows:
    """A task's rows, as they would stand in its shard."""

    task: ScoreTask
    table: pa.Table


class InMemoryWorker:
    """Scores groups of a network on images that it holds.

    Args:
        model: in eval mode, float32, on the CPU.
        groups: those to score.
        images: all.
        score, cluster: what is asked for, and what a worker may take.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        images: ImagesInMemory,
        score: Score,
        cluster: Cluster,
        device: str,
    ) -> None:
        # As many threads as were asked for: BLAS adds in another order with another number.
        torch.set_num_threads(cluster.cpus_per_worker)
        self.images, self.score_section = images, score
        self.scorer = Scorer(model, groups, images.pixels[:1], device, cluster.memory_per_worker)

    def choose_precision(self, task: PrecisionTask) -> str:
        """float32, tf32 or bfloat16, by measuring on this worker's device."""
        return self.scorer.choose_precision(self.score_section)

    def pilot(self, task: PilotTask) -> Piloted:
        """What some images tell of a group."""
        here = list(task.images)
        labels = None if self.images.labels is None else self.images.labels[here]
        ids = [self.images.ids[i] for i in here]
        split = self.scorer.split(task.group, task.precision)
        pixels, score = self.images.pixels[here], self.score_section
        found = try_images(split, pixels, labels, ids, score, to_spare=False)
        return Piloted(task, found)

    def score(self, task: ScoreTask) -> Rows:
        """Raises ValueError for a value that is not finite; names group, image and coalition."""
        here, images = slice(task.first, task.last), self.images
        labels = None if images.labels is None else images.labels[here]
        split, ids = self.scorer.split(task.group, task.precision), images.ids[here]
        pixels, score, places = (
            images.pixels[here],
            self.score_section,
            range(task.first, task.last),
        )
        estimates = score_images(split, pixels, labels, ids, score, task.price, places)
        return Rows(task, shard_table(task.group, ids, labels, estimates))
