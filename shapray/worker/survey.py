"""What the parts of a job cost on this machine: images counted, the whole network timed on them,
and each group's scoring.

Nothing is scored: the coalitions evaluated here are the first ones of each image, or the subsets of
a few units, and their values are thrown away.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shapray.engine.precision import choose_precision
from shapray.engine.trace import fold
from shapray.network.consumers import count_active
from shapray.network.index_maps import removable
from shapray.network.surgery import prune_model
from shapray.pruning.evaluate import IMAGES_AT_ONCE, count_macs, tally
from shapray.worker.costs import Survey
from shapray.worker.group_survey import Counted, GroupSurvey
from shapray.worker.piloting import pilot_on
from shapray.worker.stopwatch import Stopwatch
from shapray.worker.tasks import Setup

COUNTED_MACS = 2e11  # of forward passes that count active units
COUNTED_IMAGES = (16, 1000)  # at least and at most, if there are as many


@dataclass(frozen=True)
class SurveyTask:
    """Time everything; the work around the network at each of these numbers of permutations.

    Attributes:
        n_images: so many calibration images may be looked at, the first ones.
        images: on which every group's pilot is made; none are, no pilots.
    """

    permutations: tuple[int, ...]
    n_images: int
    images: tuple[int, ...] = ()
    cost: float = 0.0


class Surveyor:
    """Counts and times in the process that it lives in.

    Args:
        setup: the run's network, groups to score and images.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, setup: Setup, device: str) -> None:
        torch.set_num_threads(setup.job.cluster.cpus_per_worker)
        self.setup, self.device = setup, torch.device(device)
        self.stopwatch = Stopwatch(self.device)
        self.example = setup.calibration.load(0, 1)
        self.folded = fold(setup.model, self.example)
        self.macs = count_macs(setup.model, self.example)[1]

    def survey(self, task: SurveyTask) -> Survey:
        """Count and time; takes seconds to minutes, with the size of the network and the groups.

        Raises:
            JobError: an image cannot be read.
        """
        chosen, images, load = self._read(task.n_images)
        start = self.stopwatch.now()
        parts = images.split(IMAGES_AT_ONCE)
        n_active = np.concatenate(
            [count_active(self.setup.model, self.setup.groups, part) for part in parts]
        )
        look = (self.stopwatch.now() - start) / len(images)
        forward, network = self._evaluation(parts[0])
        labels = self.setup.calibration.labels
        counted = Counted(
            folded=self.folded,
            macs=self.macs,
            precision=self._precision(),
            images=images,
            labels=None if labels is None else labels[chosen],
        )
        groups, pilots = {}, {}
        for column, group in enumerate(self.setup.groups):
            of_group = GroupSurvey(
                self.setup, group, counted, n_active[:, column], self.stopwatch, task.permutations
            )
            groups[group.name] = of_group.costs()
            if task.images:
                pilots[group.name] = pilot_on(self.setup, of_group.split, task.images)
        return Survey(
            device=self.device.type,
            images=chosen,
            n_active=n_active,
            precision=counted.precision,
            load=load,
            look=look,
            forward=forward,
            network=network,
            groups=groups,
            pilots=pilots,
        )

    def _read(self, most: int) -> tuple[np.ndarray, Tensor, float]:
        """Indices of the images to count, the images, and seconds to read one: of the wall clock,
        as reading waits."""
        calibration = self.setup.calibration
        few, many = COUNTED_IMAGES
        n_counted = int(min(max(few, COUNTED_MACS // max(1, self.macs)), many, most))
        labels = None if calibration.labels is None else calibration.labels[:most]
        chosen = spread(labels, most, n_counted)
        start = time.perf_counter()
        images = torch.cat([calibration.load(i, i + 1) for i in chosen.tolist()])
        return chosen, images, (time.perf_counter() - start) / n_counted

    def _precision(self) -> str:
        job = self.setup.job
        if job.score.precision != "auto":
            return job.score.precision
        return choose_precision(
            self.folded,
            list(self.setup.groups),
            self.example,
            self.device,
            job.cluster.memory_per_worker,
            sampling=job.score,
        )

    def _evaluation(self, images: Tensor) -> tuple[float, float]:
        """Seconds to compare an image's outputs with its label, and to make a smaller network."""
        group = self.setup.groups[0]
        start = time.perf_counter()
        network = prune_model(
            self.setup.model, [group], {group.name: removable(group, range(group.n_units))[:1]}
        )
        count_macs(network, self.example)
        making = time.perf_counter() - start
        network = network.to(self.device)
        labels = torch.zeros(len(images), dtype=torch.int64)
        spent = self.stopwatch.seconds(lambda: tally(network, images, labels, self.device))
        return spent / len(images), making


def spread(labels: Tensor | None, n: int, n_chosen: int) -> np.ndarray:
    """Indices of some of `n` images, evenly from all labels, ascending."""
    order = np.arange(n) if labels is None else labels.argsort(stable=True).numpy()
    return np.sort(order[np.linspace(0, n - 1, n_chosen).round().astype(int)])
