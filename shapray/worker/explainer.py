"""What a worker does to explain scores: it reads a group's shards, plays its game again on some
images, and looks at what the network makes of them."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from shapray.engine.score import Scorer
from shapray.explain.activations import activations
from shapray.explain.cards import cards
from shapray.explain.class_removal import class_removal
from shapray.explain.extremes import find_extremes
from shapray.explain.games import play_again
from shapray.explain.kernels import kernels
from shapray.explain.negatives import negatives
from shapray.inputs.images import ImageSet
from shapray.inputs.lazy import LazyImages
from shapray.network.group import Group
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.evaluate import IMAGES_AT_ONCE
from shapray.pruning.repair.curves import shuffled
from shapray.storage.shards import read_shard
from shapray.worker.cutter import Cutter
from shapray.worker.tasks import (
    Activated,
    ActivationTask,
    ClassRemoved,
    ClassTask,
    Explained,
    ExplainTask,
    Setup,
)

IMAGES_SHARE = 0.25  # of the memory, for images that are kept
MOST_EVALUATED = 2000  # evaluation images on which units are taken away


class Explainer:
    """Explains the scores of a run.

    Args:
        setup: the run's network, groups, images and directory.
        scorer: the worker's, with the groups prepared.
        cutter: the worker's, with the network on its device.
    """

    def __init__(self, setup: Setup, scorer: Scorer, cutter: Cutter) -> None:
        self.setup, self.scorer, self.cutter = setup, scorer, cutter

    def activations(self, task: ActivationTask) -> Activated:
        calibration = self.setup.calibration
        places = shuffled(len(calibration))[: task.n_images]
        return Activated(task, activations(self._inputs(calibration, places)))

    def explain(self, task: ExplainTask) -> Explained:
        group, calibration = self.scorer.groups[task.group], self.setup.calibration
        extremes = find_extremes(group.name, group.n_units, self._shards(task, group))
        split = self.scorer.split(group.name, task.precision)
        places = torch.tensor(task.images)
        played = play_again(
            split,
            LazyImages(calibration, places, "cpu", 0)[:],
            None if calibration.labels is None else calibration.labels[places],
            [calibration.ids[place] for place in task.images],
            task.asked,
        )
        shown = cards(
            self._inputs(calibration, torch.arange(len(calibration)), [group]),
            calibration.ids,
            self.setup.job.data.transform,
            {group.name: task.asked.order},
            {group.name: extremes},
            *task.card,
        )
        evaluation = self.setup.evaluation
        some = shuffled(len(evaluation))[:MOST_EVALUATED]
        alone = negatives(
            self._inputs(evaluation, some, [group]), task.scores, {group.name: extremes}
        )
        tables = {
            **played.tables,
            "extremes": extremes.table,
            "cards": shown,
            "negatives": alone,
            "kernels": kernels(self.setup.model, [group], self.scorer.example),
        }
        return Explained(task, tables, extremes)

    def remove_classes(self, task: ClassTask) -> ClassRemoved:
        evaluation = self.setup.evaluation
        inputs = self._inputs(evaluation, shuffled(len(evaluation))[:MOST_EVALUATED])
        return ClassRemoved(task, class_removal(inputs, task.scores, task.class_scores))

    def _shards(self, task: ExplainTask, group: Group) -> Iterator[pa.Table]:
        ids = self.setup.calibration.ids
        for first, last in task.shards:
            yield read_shard(
                self.setup.store,
                group.name,
                group.n_units,
                first,
                ids[first:last],
                task.fingerprint,
            )

    def _inputs(
        self, images: ImageSet, places: Tensor, groups: Sequence[Group] | None = None
    ) -> Inputs:
        """Some images of a set, and groups; all that are scored if none are named."""
        job, device = self.setup.job, self.cutter.device
        room = int(self.cutter.room * IMAGES_SHARE)
        return Inputs(
            self.cutter.whole,
            self.setup.groups if groups is None else groups,
            LazyImages(images, places, device, room),
            None if images.labels is None else images.labels[places].to(device),
            job.score.seed,
            IMAGES_AT_ONCE,
            job.cluster.memory_per_worker,
            None,
        )
