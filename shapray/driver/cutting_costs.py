"""What the stages behind the scores take: criteria, losses of groups, searches, repairs, timings.

Orders of magnitude, from the time of a forward pass and of a coalition: so many passes over so many
images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shapray.config import Prune
from shapray.driver.plan import Plan
from shapray.driver.targets import LATENCY_BATCHES, LATENCY_STEPS, STEPS
from shapray.driver.tasks import evaluated_slices
from shapray.network.group import Group
from shapray.pruning.cuts import compared_networks
from shapray.pruning.latency import FEWEST, LONGEST, WARM_UP
from shapray.pruning.ranking import needed_criteria
from shapray.pruning.repair.curves import CURVE_IMAGES, counts
from shapray.pruning.repair.distill import BATCH, CHECKS, EXAMINED
from shapray.pruning.repair.least_squares import VIEWS
from shapray.worker.costs import Survey

# Passes of the whole network over the images that are looked at, as long as something takes.
PASSES = {"apoz": 1, "taylor": 3, "taylor_signed": 3, "obd": 3, "jacobian": 4}  # of a criterion
COALITIONS = {"leave_one_out": 1, "shapley_sampled": 0}  # per active unit; 0: the permutations
GRAM_PASSES = 10  # the sums that obs needs, of all layers together
FITTED = 10  # a fit by least squares of all layers, of every view
RENEWED = 2  # new statistics of the BatchNorms
TAUGHT = 4  # a step of distillation: one network forward, the other forward and back
LOSSES = 6  # a flat group's losses by one ranking, and once more for what they have in common

Part = tuple[float, np.ndarray]  # as `forecast.makespan` takes it


@dataclass(frozen=True)
class CuttingCosts:
    """Seconds of the stages behind the scores, on a worker like the one that was timed.

    Attributes:
        permutations: per image, of what is sampled of each group.
    """

    planned: Plan
    survey: Survey
    permutations: Mapping[str, int]

    @property
    def prune(self) -> Prune:
        return self.planned.setup.job.prune

    @property
    def groups(self) -> Sequence[Group]:
        return self.planned.setup.groups

    @property
    def n_images(self) -> int:
        return len(self.planned.setup.calibration)

    @property
    def names(self) -> list[str]:
        """The criteria beside Shapley values that the job's rankings read."""
        return needed_criteria(self.prune)

    def criteria(self) -> list[Part]:
        """A task for each of them."""
        return self._criteria(self.prune)

    def _criteria(self, prune: Prune) -> list[Part]:
        seconds = [self.criterion(name) for name in needed_criteria(prune)]
        return [(0.0, np.array(seconds))] if seconds else []

    def criterion(self, name: str) -> float:
        """One beside Shapley values."""
        if name in COALITIONS:
            an_image = 0.0
            for group, n_active in zip(self.groups, self.survey.n_active.mean(0).tolist()):
                costs = self.survey.groups[group.name]
                each = COALITIONS[name] or self.permutations[group.name]
                an_image += costs.image + each * n_active * costs.coalition
            return self.n_images * an_image
        if name == "obs":
            walks = len(self.groups) / 2 + GRAM_PASSES
            return walks * self.n_images * self.survey.forward + self._inverses()
        return PASSES.get(name, 0) * self.n_images * self.survey.forward

    def _inverses(self) -> float:
        """A matrix of each consumer's features made, and brought to nothing unit by unit."""
        model = self.planned.setup.model
        n_features = [
            model.get_submodule(consumer.module).weight[0].numel()  # type: ignore[index]
            for group in self.groups
            for consumer in group.consumers
        ]
        macs = 2 * sum(2 * n**3 for n in n_features)  # in float64, which takes twice the time
        return macs * self.survey.forward / max(1, self.planned.chooser.sizes.all_macs)

    def losses(self, n_rankings: int) -> list[Part]:
        """A task for each group, if they are measured."""
        if self.prune.allocation != "measured":
            return []
        seconds = [self._losses(group, n_rankings) for group in self.groups]
        return [(0.0, np.array([of_group])) for of_group in seconds]

    def _losses(self, group: Group, n_rankings: int) -> float:
        """Of a deep group all behind it is fitted at every point; of a flat one its consumers."""
        passes = float(LOSSES * (1 + n_rankings))
        if not group.flat:
            n_cut = n_rankings * (len(counts(group.n_units, group.step)) - 1)
            behind = self.planned.tail_macs[group.name] / self.planned.chooser.sizes.all_macs
            fitted = FITTED * min(1.0, behind) * ("least_squares" in self.prune.repair)
            passes = n_cut * (1 + fitted)
        return passes * min(self.n_images, CURVE_IMAGES) * self.survey.forward

    def between(self) -> list[Part]:
        """What comes behind the scores of a further round. Its network is smaller than the one that
        was timed, nobody knows yet how much: at most this."""
        made = self.survey.network + self._closed_form(self.n_images)
        looked = self.n_images * (self.survey.load + self.survey.look)
        own = self._criteria(self.prune.model_copy(update={"criteria": ()}))
        return [*own, *self.losses(1), (0.0, np.array([made + looked]))]

    def repair(self, n_images: int) -> float:
        """One network's, with so many calibration images."""
        passes = 0.0
        if "distill" in self.prune.repair:
            passes += TAUGHT * self.prune.distill.steps * min(BATCH, n_images)
            passes += (CHECKS + 2) * min(EXAMINED, n_images)
        return self._closed_form(n_images) + passes * self.survey.forward

    def _closed_form(self, n_images: int) -> float:
        """All of it but a distillation."""
        passes = 0.0
        if "batchnorm" in self.prune.repair:
            passes += RENEWED * n_images
        if "least_squares" in self.prune.repair:
            passes += FITTED * VIEWS * n_images
        return passes * self.survey.forward

    def search(self) -> list[Part]:
        """One network after another, measured on the images that are held back."""
        held_back = self.planned.setup.held_back
        if held_back is None:
            return []
        n_held_back = len(held_back)
        measured = n_held_back * (self.survey.load + self.survey.forward)  # the whole one's, too
        made = self.survey.network + self.repair(self.n_images)
        return [(0.0, np.array([measured + STEPS * (made + measured)]))]

    def latency(self) -> list[Part]:
        """Networks timed beside the whole one, one after the other: what is saved at last, and
        where time is the target what a cut of each group saves."""
        *_, large = LATENCY_BATCHES
        seconds = 2 * sum(map(self._timed, LATENCY_BATCHES))
        if self.prune.target[0] == "latency":
            n_networks = sum(len(counts(group.n_units, group.step)) for group in self.groups)
            seconds += (n_networks + 2 * (1 + LATENCY_STEPS)) * self._timed(large)
        return [(0.0, np.array([seconds]))]

    def _timed(self, batch: int) -> float:
        """One network's passes."""
        one = min(batch * self.survey.forward, LONGEST)
        return WARM_UP * one + max(1.0, FEWEST * one)

    def evaluation(self) -> list[Part]:
        """Every network that is compared made, repaired and measured."""
        n_images = len(self.planned.setup.evaluation)
        parts = []
        for repaired in compared_networks(self.prune)[1]:
            made = self.survey.network + repaired * self.repair(self.n_images)
            slices = evaluated_slices(n_images, repaired)
            each = self.survey.load + self.survey.forward
            parts.append((made, np.array([each * (last - first) for first, last in slices])))
        return parts
