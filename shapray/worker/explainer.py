"""What a worker does to explain scores: it reads a group's shards, plays its game again on some
images, and looks at what the network makes of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from shapray.explain.sampling import most_players
from shapray.inputs.images import ImageSet
from shapray.inputs.lazy import LazyImages
from shapray.network.group import Group
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.evaluate import IMAGES_AT_ONCE
from shapray.pruning.repair.curves import shuffled
from shapray.storage import names
from shapray.storage.aggregate import matrix
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
MOST_EVALUATED = 500  # evaluation images on which units are taken away


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
        room = int(self.cutter.room * IMAGES_SHARE / 2)  # there may be as many of few units
        most = max(1, room // self.scorer.example.nbytes)
        drawn = sorted(task.images[:most])
        scored = _Scored(drawn, group.n_units)
        shards = self._shards(task, group, scored)
        extremes = find_extremes(group.name, group.n_units, shards)
        split = self.scorer.split(group.name, task.precision)
        few = scored.of_few_units(most_players(split.n_outputs), len(drawn))
        images = [*drawn, *few]
        places = torch.tensor(images)
        played = play_again(
            split,
            LazyImages(calibration, places, "cpu", 0)[:],
            None if calibration.labels is None else calibration.labels[places],
            [calibration.ids[place] for place in images],
            scored.values,
            replace(task.asked, n_evaluations=scored.n_evaluations),
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
            self._inputs(evaluation, some, [group]),
            self.scorer,
            task.scores,
            {group.name: extremes},
        )
        tables = {
            **played.tables,
            "cards": shown,
            "negatives": alone,
            "kernels": kernels(self.setup.model, [group], self.scorer.example),
        }
        return Explained(task, tables, extremes)

    def remove_classes(self, task: ClassTask) -> ClassRemoved:
        evaluation = self.setup.evaluation
        inputs = self._inputs(evaluation, shuffled(len(evaluation))[:MOST_EVALUATED])
        store = self.setup.store

        def by_class(group: str) -> pa.Table:
            own = pc.field("group") == group
            return store.read_table(names.CLASS_SCORES, ["unit", "label", "mean"], own)

        scores = store.read_table(names.SCORES, ["group", "unit", "mean"])
        return ClassRemoved(task, class_removal(inputs, scores, by_class))

    def _shards(self, task: ExplainTask, group: Group, scored: "_Scored") -> Iterator[pa.Table]:
        """In image order; what is needed of them further on is noted down."""
        ids, store = self.setup.calibration.ids, self.setup.store
        for first, last in task.shards:
            wanted = ids[first:last]
            shard = read_shard(store, group.name, group.n_units, first, wanted, task.fingerprint)
            scored.note(first, shard)
            yield shard

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


class _Scored:
    """What scoring a group left of its images.

    Args:
        images: places of those whose values are wanted, ascending.

    Attributes:
        values: (n_wanted, n_units) Shapley values.
        n_evaluations: coalitions, of all images.
    """

    def __init__(self, images: Sequence[int], n_units: int) -> None:
        self.images = images
        self.values = np.zeros((len(images), n_units))
        self.n_evaluations = 0
        self._n_active: list[int] = []

    def note(self, first: int, shard: pa.Table) -> None:
        """Take in the shard whose first image is at the place `first`."""
        self.n_evaluations += pc.sum(shard["n_evaluations"]).as_py()
        self._n_active += shard["n_active"].to_pylist()
        start, stop = np.searchsorted(self.images, [first, first + len(shard)])
        if start < stop:
            rows = np.array(self.images[start:stop]) - first
            self.values[start:stop] = matrix(shard["shapley_value"], self.values.shape[1])[rows]

    def of_few_units(self, most: int, n: int) -> list[int]:
        """Places of up to `n` other images with as few active units, but some, the fewest first."""
        wanted = set(self.images)
        found = [
            (k, place)
            for place, k in enumerate(self._n_active)
            if 0 < k <= most and place not in wanted
        ]
        return [place for _, place in sorted(found)[:n]]
