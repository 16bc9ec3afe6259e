"""What a worker does behind the scores: other criteria, cuts, repairs, measurements."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shapray.engine.network_game import PROCESS_BYTES
from shapray.engine.score import Scorer
from shapray.errors import JobError
from shapray.inputs.images import ImageSet
from shapray.inputs.lazy import LazyImages
from shapray.network.surgery import prune_model
from shapray.pruning.compressed import compressed
from shapray.pruning.criteria import CRITERIA, criterion
from shapray.pruning.criteria.inputs import AsScored
from shapray.pruning.cuts import HELD_BACK, Cut
from shapray.pruning.evaluate import IMAGES_AT_ONCE, count_macs, joined, tally
from shapray.pruning.files import N_COMPARED, publish
from shapray.pruning.latency import bearable_batch, compared_latency
from shapray.pruning.repair.curves import CURVE_IMAGES, loss_curves, shuffled
from shapray.pruning.repair.distill import in_words
from shapray.pruning.repair.walk import images_that_fit
from shapray.pruning.saved import weights_bytes
from shapray.worker.tasks import (
    CriterionScores,
    CriterionTask,
    CutMade,
    CutTask,
    EvaluateTask,
    Evaluation,
    GroupLosses,
    Latencies,
    LatencyTask,
    LossTask,
    Setup,
)

IMAGES_SHARE = 0.25  # of the memory, for calibration images that are kept
NORM_SHARE = 0.25  # of it, for what all images make of one layer


@dataclass(frozen=True)
class _Made:
    """A cut network, and what was found out about it."""

    cut: str
    network: nn.Module
    parameters: int
    multiply_adds: int
    file_bytes: int
    notes: tuple[str, ...]


class Cutter:
    """Cuts the network of a run, keeping what the next task is likely to need again.

    Args:
        setup: the run's network, groups, images and directory.
        scorer: the worker's, for its device and its traced network.
    """

    def __init__(self, setup: Setup, scorer: Scorer) -> None:
        self.setup, self.scorer, self.device = setup, scorer, scorer.device
        self._made: _Made | None = None

    def criterion(self, task: CriterionTask) -> CriterionScores:
        name, job, n_all = task.criterion, self.setup.job, len(self.setup.calibration)
        n_images = min(n_all, task.most_images or n_all)
        n_used = min(n_images, self._n_repairable) if CRITERIA[name].at_once else n_images
        images, labels = self._calibration(n_used)
        places = shuffled(n_all)[:n_used].tolist()
        ids = [self.setup.calibration.ids[i] for i in places]
        scoring = job.score.model_copy(update={"estimator": "permutation"})
        sampled = AsScored(scoring, task.prices, ids, places)
        try:
            scores = criterion(
                name,
                self.whole,
                self.setup.groups,
                images,
                labels,
                job.score.seed,
                memory=job.cluster.memory_per_worker,
                as_scored=sampled,
            )
        except ValueError as error:
            raise JobError(str(error)) from error
        note = (
            f"criterion {name}: {n_used} of {n_images} images are used, as many as the memory of a "
            "worker holds (cluster.memory_per_worker)"
        )
        return CriterionScores(task, scores, (note,) * (n_used < n_images))

    def losses(self, task: LossTask) -> GroupLosses:
        group = self.scorer.groups[task.group]
        images = self._images[: min(CURVE_IMAGES, self._n_repairable)]
        repaired = "least_squares" in self.setup.job.prune.repair
        found = loss_curves(self.whole, group, task.orders, images, repaired, self._folded)
        return GroupLosses(task, found)

    def latency(self, task: LatencyTask) -> Latencies:
        example = self.scorer.example
        networks = {"whole": self.whole} | {
            name: prune_model(self.whole, self.setup.groups, removed)
            for name, removed in task.removed.items()
        }
        timed = [
            compared_latency(networks, example, batch, device=self.device)
            for batch in dict.fromkeys(
                bearable_batch(self.whole, example, batch, self.device) for batch in task.batches
            )
        ]
        return Latencies(task, {name: tuple(of[name] for of in timed) for name in networks})

    def cut(self, task: CutTask, say: Callable[[str], None]) -> CutMade:
        made = self._network(task.cut, self._calibration(), task.folder, (), say)
        return CutMade(task, made.notes)

    def evaluate(self, task: EvaluateTask, say: Callable[[str], None]) -> Evaluation:
        searching = task.images == "held_back"
        repairing = self._not_held_back() if searching else self._calibration()
        formats, parts = self.setup.job.prune.export, []
        made = self._network(task.cut, repairing, task.publish, formats, say)
        for first in range(task.first, task.last, IMAGES_AT_ONCE):
            last = min(first + IMAGES_AT_ONCE, task.last)
            images, labels = self._to_measure(task.images, first, last)
            parts.append(tally(made.network, images, labels, self.device))
        return Evaluation(
            task, joined(parts), made.parameters, made.multiply_adds, made.file_bytes, made.notes
        )

    def _network(
        self,
        cut: Cut,
        repairing: tuple[LazyImages, Tensor | None],
        folder: str | None,
        formats: Sequence[str],
        say: Callable[[str], None],
    ) -> _Made:
        """The network of a cut, kept for the next slice of images.

        Args:
            repairing: images that make the repair, and their labels.
            folder: for its files; None if they are not kept.
            formats: of them, beside the weights.
            say: called with how far it is, now and then.
        """
        setup = self.setup
        if self._made is None or self._made.cut != cut.name:
            images, labels = repairing
            prune, seed = setup.job.prune, setup.job.score.seed
            made = compressed(
                self.whole,
                setup.groups,
                cut.removed,
                cut.repair,
                images,
                labels,
                prune,
                seed,
                progress=lambda *how_far: say(f"{cut.name}: {in_words(*how_far)}"),
                n_fitted=self._n_held,
                most=int(self.room * NORM_SHARE),
            )
            notes = tuple(f"{cut.name}: {line}" for line in made.done) + made.notes
            if folder is not None:
                notes += publish(
                    setup.store,
                    folder,
                    plan=cut,
                    groups=setup.groups,
                    whole=setup.model,
                    made=made,
                    images=images[:N_COMPARED].cpu(),
                    formats=formats,
                )
            parameters, macs = count_macs(made.network, images[:1])
            n_bytes = len(weights_bytes(made.network))
            self._made = _Made(cut.name, made.network, parameters, macs, n_bytes, notes)
        return self._made

    @functools.cached_property
    def whole(self) -> nn.Module:
        """The network on the worker's device."""
        model = self.setup.model
        return model if self.device.type == "cpu" else copy.deepcopy(model).to(self.device)

    @property
    def _folded(self) -> nn.Module:
        return self.scorer.folded.to(self.device)

    def _calibration(self, n: int | None = None) -> tuple[LazyImages, Tensor | None]:
        """Some calibration images and their labels, of all classes, on the worker's device; more of
        them begin with the same. All, unless told."""
        n_all = len(self.setup.calibration)
        return self._some(torch.arange(n_all if n is None else n))

    def _not_held_back(self) -> tuple[LazyImages, Tensor | None]:
        """The same without those that are held back."""
        ids, held_back = self.setup.calibration.ids, self.setup.held_back
        assert held_back is not None
        out = set(held_back.ids)
        order = shuffled(len(ids)).tolist()
        return self._some(torch.tensor([n for n, i in enumerate(order) if ids[i] not in out]))

    def _some(self, which: Tensor) -> tuple[LazyImages, Tensor | None]:
        """Calibration images at places in the order in which they are taken."""
        labels = self.setup.calibration.labels
        if labels is not None:
            labels = labels[shuffled(len(labels))[which]].to(self.device)
        return self._images.some(which), labels

    @functools.cached_property
    def _images(self) -> LazyImages:
        calibration = self.setup.calibration
        order, room = shuffled(len(calibration)), int(self.room * IMAGES_SHARE)
        return LazyImages(calibration, order, self.device, room)

    @functools.cached_property
    def room(self) -> int:
        """Bytes of the memory that are left beside the process itself."""
        memory = self.setup.job.cluster.memory_per_worker
        return memory - PROCESS_BYTES if self.device.type == "cpu" else memory

    def _to_measure(self, name: str, first: int, last: int) -> tuple[Tensor, Tensor]:
        images: ImageSet = getattr(self.setup, name)
        assert images.labels is not None
        pixels = self._held_back[first:last] if name == "held_back" else images.load(first, last)
        return pixels, images.labels[first:last]

    @functools.cached_property
    def _held_back(self) -> LazyImages:
        """A search measures on them again and again."""
        images = self.setup.held_back
        assert images is not None
        room = int(self.room * IMAGES_SHARE / HELD_BACK)
        return LazyImages(images, torch.arange(len(images)), self.device, room)

    @functools.cached_property
    def _n_repairable(self) -> int:
        """How many calibration images there are, or their activations can be held of."""
        return min(len(self.setup.calibration), self._n_held)

    @functools.cached_property
    def _n_held(self) -> int:
        """How many images' activations a worker may hold."""
        memory = self.setup.job.cluster.memory_per_worker
        return images_that_fit(self._folded, self.scorer.example, memory)
