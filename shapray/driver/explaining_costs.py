"""What explaining the scores takes: orders of magnitude, as for cutting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shapray.driver.cutting_costs import CuttingCosts, Part
from shapray.driver.explaining import COLUMNS, MOST_IMAGES
from shapray.explain.cards import that_fit
from shapray.explain.class_removal import N_CLASSES
from shapray.explain.games import MOST_ENUMERATED, SHARE
from shapray.explain.negatives import N_UNITS
from shapray.explain.sampling import N_SEEDS, PRICES, most_players
from shapray.explain.where import STEPS
from shapray.worker.explainer import MOST_EVALUATED

WITH_SLOPES = 3  # passes that one with derivatives takes as long as
ACTIVATIONS = 1  # passes over the images


@dataclass(frozen=True)
class ExplainingCosts:
    """Seconds on a worker like the one that was timed.

    Attributes:
        cutting: times of a pass and of criteria.
        scoring: seconds that each group's tasks take, in the order of the groups.
    """

    cutting: CuttingCosts
    scoring: Sequence[float]

    def parts(self) -> list[Part]:
        """The criteria, the activations, a task for each group, the classes."""
        cutting = self.cutting
        setup, forward = cutting.planned.setup, cutting.survey.forward
        load = cutting.survey.load
        if not setup.job.explain.images:
            return []
        n_seen = min(cutting.n_images, MOST_IMAGES)
        share = n_seen / cutting.n_images
        missing = [name for name in COLUMNS if name not in cutting.names]
        criteria = [share * cutting.criterion(name) for name in missing]
        n_evaluated = min(len(setup.evaluation), MOST_EVALUATED)
        n_units, n_images = that_fit(len(setup.groups))
        maps = 4 * n_units * n_images * STEPS * WITH_SLOPES * forward
        groups = []
        for column, (group, seconds) in enumerate(zip(setup.groups, self.scoring, strict=True)):
            costs = cutting.survey.groups[group.name]
            alone = n_evaluated * (load + costs.image + N_UNITS * costs.coalition)
            again = SHARE * seconds + self._sampled(column)
            groups.append(costs.prepare + again + maps + alone)
        classes = (2 * N_CLASSES + 2) * n_evaluated * forward
        labelled = [classes] if setup.calibration.labels is not None else []
        return [(0.0, np.array([*criteria, ACTIVATIONS * n_seen * forward, *groups, *labelled]))]

    def _sampled(self, column: int) -> float:
        """A group's images of few units, whose coalitions' values are all known, are sampled over
        and over: no network, but all that is around it."""
        planned, survey = self.cutting.planned, self.cutting.survey
        n_active = survey.n_active[:, column]
        few = (n_active > 0) & (n_active <= most_players(planned.n_classes))
        asked = 2 * planned.setup.job.explain.images  # those drawn, and as many of few units
        n_images = min(MOST_ENUMERATED, asked, round(float(few.mean()) * self.cutting.n_images))
        costs = survey.groups[planned.setup.groups[column].name]
        return n_images * N_SEEDS * sum(costs.around(price) for price in PRICES)
